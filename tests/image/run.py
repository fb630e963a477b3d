#!/usr/bin/python3
"""The tests of the container image: run.py BINARY [--long] [WORD...]; those whose names have one of the words in them. With --long also those of the image for
arm64, whose agent is cross-compiled first, and of the Dockerfile. Root."""
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import traceback

TREE = os.path.dirname(os.path.dirname(os.path.dirname(os.path.realpath(__file__))))
sys.path[:0] = [os.path.join(TREE, "scripts"), os.path.dirname(os.path.realpath(__file__))]
sys.dont_write_bytecode = True
from labkit import image, image_packages, own, packages  # noqa: E402
from root import Root  # noqa: E402
import arm64  # noqa: E402
import contents  # noqa: E402
import docker  # noqa: E402
import start  # noqa: E402
import steps  # noqa: E402
import twice  # noqa: E402


class Images:
    """Both images, unpacked."""

    def __init__(self, binary, folder):
        self.binary, self.folder, self.version = binary, folder, image.version()
        self.root, self.minimal = self.unpacked("full"), self.unpacked("minimal")

    def unpacked(self, variant):
        recipe = image.Recipe("amd64", variant, self.binary, image.source_date())
        path, digest, size = image.make(recipe, f"{self.folder}/{variant}")
        own.say(f"{path}: {digest}, {size / 2**20:.1f} MiB")
        return Root(f"{self.folder}/{variant}.unpacked", path, recipe.tag)

    def scratch(self, name):
        return own.fresh(f"{self.folder}/scratch/{name}")


def sweep():
    """Removes what killed runs have left."""
    for name in os.listdir(own.cache()):
        found = re.fullmatch(r"image-test-(\d+)", name)
        if found and not os.path.exists(f"/proc/{found[1]}"):
            path = f"{own.cache()}/{name}"
            with open("/proc/mounts") as handle:
                mounts = [line.split()[1] for line in handle if line.split()[1].startswith(path + "/")]
            for mount in reversed(mounts):
                subprocess.run(["umount", "-l", mount])
            shutil.rmtree(path, ignore_errors=True)


def main():
    binary, long, words = sys.argv[1], "--long" in sys.argv[2:], [word for word in sys.argv[2:] if word != "--long"]
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what was started is ended
    elsewhere = {name for name, path in packages.IMAGE.items() if shutil.which(os.path.basename(path))}  # containerd of docker's makers, say
    packages.install({**packages.TOOLS, **{name: path for name, path in packages.IMAGE.items() if name not in elsewhere}})
    sweep()
    folder = own.fresh(f"{own.cache()}/image-test-{os.getpid()}")
    passed, failed, changed = 0, [], []
    try:
        changed = image_packages.settle(folder)
        of = Images(binary, folder)
        for test in [*contents.ALL, *steps.ALL, *twice.ALL, *start.ALL, *([*arm64.ALL, *docker.ALL] if long else [])]:
            name = test.__name__
            if words and not any(word in name for word in words):
                continue
            began = time.monotonic()
            try:
                test(of)
            except Exception:
                traceback.print_exc(file=sys.stdout)
                failed.append(name)
            else:
                passed += 1
            print(f"{'FAILED' if name in failed else 'ok':<7}{name} ({time.monotonic() - began:.1f} s)", flush=True)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print(*image_packages.instead(changed), f"image: {passed} passed, {len(failed)} failed", sep="\n", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except own.LabError as error:
        own.say(f"image: {error}")
        print("image: 0 passed, 1 failed")
        sys.exit(1)
