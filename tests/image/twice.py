"""The same image each time; and what is said when a locked package is not to be had."""
import hashlib
import json
import os
import re
import shutil
import subprocess
import tarfile
import time
from unittest import mock

from labkit import image, image_go, image_oci, image_packages, own, release
from labkit.image_tree import Tree
from root import said, that


def two_runs_give_the_same_bytes(of):
    """The second one in another process, place, language, time zone and order of hashes."""
    digests = []
    for variant, root in (("full", of.root), ("minimal", of.minimal)):
        folder = f"{of.folder}/again"
        env = dict(os.environ, LC_ALL="C.UTF-8", TZ="Asia/Tokyo", PYTHONHASHSEED="7", SOURCE_DATE_EPOCH=str(image.source_date()))
        words = [f"{own.TREE}/scripts/image", "--binary", of.binary, "--output", folder, *(["--minimal"] if variant == "minimal" else [])]
        done = subprocess.run(["sh", "-c", 'umask 077; exec "$@"', "sh", *words], capture_output=True, text=True, env=env, cwd="/")
        that(done.returncode == 0, said(done))
        digests.append(re.search(r"sha256:[0-9a-f]{64}", done.stdout)[0])
        that(digests[-1] == root.index["manifests"][0]["digest"], digests[-1], root.index["manifests"])
        own.run("cmp", root.archive, done.stdout.splitlines()[0])
    that(len(set(digests)) == 2, "the two images are one")


def only_the_last_layer_changes_with_the_program(of):
    """Nodes fetch and keep the others once."""
    binary = f"{of.scratch('other')}/sluice"
    with open(of.binary, "rb") as there, open(binary, "wb") as here:
        here.write(there.read() + b"another build")
    recipe = image.Recipe("amd64", "minimal", binary, image.source_date() + 3600)
    layers = [layer.digest for layer in recipe.image().layers]
    before = [layer["digest"] for layer in of.minimal.manifest["layers"]]
    that(layers[:-1] == before[:-1] and layers[-1] != before[-1], layers, before)


def a_package_that_is_not_to_be_had_is_named_with_what_to_do(of):
    lost = image_packages.Package("amd64", "full", "Debian", "iptables", "1.8.13-99", 4711, "0" * 64, "pool/main/i/iptables/none.deb")
    said_so, mirrors = "", image_packages.mirrors
    image_packages.mirrors = lambda: {"Debian": f"file://{of.folder}/"}
    try:
        image_packages.fetch([lost])
    except own.LabError as error:
        said_so = str(error)
    finally:
        image_packages.mirrors = mirrors
    that("iptables 1.8.13-99" in said_so and "scripts/image --renew" in said_so, said_so or "nothing was said")


def a_package_that_the_archive_has_replaced_comes_from_its_state_on_the_day_of_the_lock(of):
    """By the lock's hash, from an archive that has several days."""
    day, packages = image_packages.of_image("amd64", "minimal")
    package = min(packages, key=lambda one: one.size)
    folder, path = of.scratch("snapshots"), f"{of.scratch('fetched')}/package.deb"
    there = f"{folder}/{package.label.lower()}/{time.strftime('%Y%m%d', time.gmtime(day))}T235959Z/{package.path}"
    os.makedirs(os.path.dirname(there))
    shutil.copy(image_packages.fetch([package])[package], there)
    archives = {package.label: f"file://{of.folder}/"}
    with mock.patch.dict(os.environ, {image_packages.SNAPSHOT: f"file://{folder}/{{archive}}/{{time}}"}):
        image_packages.fetch_one(package, archives, path)
        own.run("cmp", there, path)
        os.unlink(there)
        try:
            image_packages.fetch_one(package, archives, f"{path}.2")
        except image_packages.Gone as error:
            that(package.name in str(error) and "nor is it where" in str(error) and os.path.exists(path), error)
        else:
            that(False, "a package came from nowhere")


def where_the_archive_lacks_a_package_of_the_lock_tests_go_on_with_what_it_has(of):
    """A lock with a version that never was, in place of one that the archive has replaced."""
    with open(image_packages.lock()) as handle:
        lines = handle.read().splitlines()
    number = next(n for n, line in enumerate(lines) if re.match("amd64 full \\S+ bash ", line))
    words = lines[number].split()
    words[4], words[6], words[7] = "5.2.0-0.1", "0" * 64, "pool/main/b/bash/bash_5.2.0-0.1_amd64.deb"
    lines[number] = " ".join(words)
    path = f"{of.scratch('lock')}/packages.lock"
    own.write(path, "\n".join(lines) + "\n")
    with mock.patch.dict(os.environ, {image_packages.OTHER_LOCK: path}):
        changed = image_packages.settle(of.scratch("other-lock"), ["amd64"])
        lines = image_packages.instead(changed)
        that("NOT by image/packages.lock" in lines[0] and any(f"bash amd64: {words[4]} -> " in line for line in lines), lines)
        taken = {package.name: package for package in image_packages.of_image("amd64", "full")[1]}
        that(taken["bash"].version != words[4], "the lock of before is in use")
        that(len(image_packages.fetch(taken.values())) == len(taken), "not all were fetched")


def a_binary_for_another_processor_is_refused(of):
    done = subprocess.run([f"{own.TREE}/scripts/image", "--arch", "arm64", "--binary", of.binary, "--output", of.folder], capture_output=True, text=True)
    that(done.returncode == 1 and "is no program for arm64" in done.stderr, said(done))


def an_older_program_for_another_processor_is_in_no_release(of):
    """It cannot be asked here. That a crate of it has the version's numbers does not make it newer."""
    folder, older = of.scratch("release"), f"{of.scratch('older')}/sluice"
    head = b"\x7fELF".ljust(18, b"\0") + image.MACHINES["arm64"].to_bytes(2, "little")
    crate = f"/slab-{of.version}/src/lib.rs, off".encode()
    with open(older, "wb") as handle:
        handle.write(head + crate + b"0.0.0")
    that(not release.has(head + crate + b"0.0.0", of.version) and release.has(head + crate + f" version {of.version}, built on ".encode(), of.version), "the reading of bytes")
    done = subprocess.run([f"{own.TREE}/scripts/release", "--dry", "--binary", of.binary, "--binary", older, "--output", folder], capture_output=True, text=True)
    that(done.returncode == 1 and f"{older} is not of version" in done.stderr and not os.listdir(folder), said(done))


def for_arm64():
    """The minimal image with one of the Go programs in the agent's place, for which this machine has no compiler."""
    stand_in = image_go.compiled("cni", image_go.PLUGINS_OF, "plugins/main/loopback", "arm64")
    recipe = image.Recipe("arm64", "minimal", stand_in, image.source_date())
    recipe.go = {"usr/libexec/cni/loopback": stand_in}
    return recipe


def joined(of):
    """The minimal images of both processors in one archive, made by the first test that asks for it: its path, and the digest of its index."""
    if not hasattr(of, "joined"):
        folder = of.scratch("joined")
        there, _, _ = image.make(for_arm64(), folder)
        data, digest = image_oci.joined([of.minimal.archive, there], image.NAME, f"{of.version}-minimal", image.source_date())
        again, _ = image_oci.joined([there, of.minimal.archive], image.NAME, f"{of.version}-minimal", image.source_date())
        that(data == again, "the order in which they are named makes other bytes")
        path = f"{folder}/both.tar"
        with open(path, "wb") as handle:
            handle.write(data)
        of.joined = (path, digest)
    return of.joined


def images_of_both_processors_in_one_archive_are_one_image_and_the_same_as_apart(of):
    path, digest = joined(of)
    with tarfile.open(path) as archive:
        files = {member.name: archive.extractfile(member).read() for member in archive if member.isfile()}
    [named] = json.loads(files.pop("index.json"))["manifests"]
    that(named["digest"] == digest and named["mediaType"].endswith("image.index.v1+json"), named)
    that(named["annotations"]["io.containerd.image.name"] == f"docker.io/library/sluice:{of.version}-minimal", named)
    manifests = json.loads(files["blobs/" + digest.replace(":", "/")])["manifests"]
    that([one["platform"]["architecture"] for one in manifests] == ["amd64", "arm64"], manifests)
    that(manifests[0]["digest"] == of.minimal.index["manifests"][0]["digest"], "another image than in its own archive:", manifests)
    that(set(files) - {"oci-layout"} == {f"blobs/sha256/{hashlib.sha256(files[name]).hexdigest()}" for name in files if name != "oci-layout"}, *files)
    for one in manifests:
        manifest = json.loads(files["blobs/" + one["digest"].replace(":", "/")])
        for blob in (manifest["config"], *manifest["layers"]):
            that(len(files["blobs/" + blob["digest"].replace(":", "/")]) == blob["size"], blob)


def an_image_for_another_processor_has_programs_for_it_alone(_of):
    recipe = for_arm64()
    programs, links = 0, 0
    for tree, _, _ in recipe.trees():
        for path, entry in tree.entries.items():
            links += path == "lib"
            if entry.data[:4] == b"\x7fELF":
                programs += 1
                that(int.from_bytes(entry.data[18:20], "little") == image.MACHINES["arm64"], path, "is for another processor")
    that(programs > 20 and links == 1, programs, "programs")
    that(recipe.image().archive("sluice", "x").count(b'"architecture":"arm64"') >= 2, "the architecture is not named")


def the_lock_has_every_package_of_the_list_for_both_processors(_of):
    listed = image_packages.wanted()
    names = {name for verb in ("both", "full") for words in listed[verb] for name in words}
    left_out = {name for words in listed["without"] for name in words}
    for arch in image_packages.ARCHITECTURES:
        locked = {package.name: package for package in image_packages.of_image(arch, "full")[1]}
        that(names <= locked.keys(), arch, "lacks", names - locked.keys())
        that(not left_out & locked.keys(), arch, left_out & locked.keys())
        minimal = {package.name for package in image_packages.of_image(arch, "minimal")[1]}
        both = {name for words in listed["both"] for name in words}
        that(both <= minimal < locked.keys(), arch, minimal)


def files_that_debian_names_by_links_stand_below_usr(_of):
    tree = Tree()
    for path in ("/sbin/one", "lib/modules/two", "./usr/sbin/three", "lib64/four"):
        tree.file(path, "")
    files = sorted(path for path, entry in tree.entries.items() if entry.kind == "file")
    that(files == ["usr/lib/modules/two", "usr/lib64/four", "usr/sbin/one", "usr/sbin/three"], files)


def the_dockerfile_makes_the_same_image(of):
    with open(f"{own.TREE}/image/Dockerfile") as handle:
        text = handle.read()
    that(f'ENTRYPOINT ["{of.root.config["config"]["Entrypoint"][0]}"]' in text, "entry point")
    that(f"ENV {of.root.config['config']['Env'][0]}" in text, "environment")
    for key, value in of.root.config["config"]["Labels"].items():
        # Its context has no history, and a date would make each build another image.
        is_there = f"{key}={value}" in text or f'{key}="{value}"' in text
        that(is_there or key.rsplit(".", 1)[1] in ("created", "revision"), key, value)
    that(f"WORKDIR {of.root.config['config']['WorkingDir']}" in text, "working directory")
    that("scripts/image" in text and "--folder" in text and "FROM scratch" in text, "its files are not those of scripts/image")


def the_files_alone_are_those_of_the_archive(of):
    folder = of.scratch("folder")
    done = subprocess.run([f"{own.TREE}/scripts/image", "--minimal", "--binary", of.binary, "--folder", folder], capture_output=True, text=True)
    that(done.returncode == 0, said(done))
    own.run("diff", "-r", "--no-dereference", "--exclude=sys", "--exclude=proc", "--exclude=dev", "--exclude=run", folder, of.minimal.path)


ALL = [two_runs_give_the_same_bytes, only_the_last_layer_changes_with_the_program, a_package_that_is_not_to_be_had_is_named_with_what_to_do,
       a_package_that_the_archive_has_replaced_comes_from_its_state_on_the_day_of_the_lock, where_the_archive_lacks_a_package_of_the_lock_tests_go_on_with_what_it_has,
       a_binary_for_another_processor_is_refused, an_older_program_for_another_processor_is_in_no_release, an_image_for_another_processor_has_programs_for_it_alone,
       images_of_both_processors_in_one_archive_are_one_image_and_the_same_as_apart, the_lock_has_every_package_of_the_list_for_both_processors,
       files_that_debian_names_by_links_stand_below_usr, the_dockerfile_makes_the_same_image, the_files_alone_are_those_of_the_archive]
