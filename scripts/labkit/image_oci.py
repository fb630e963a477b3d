"""One file that is an image: an OCI image layout in a tar archive, which `ctr images import`, `podman load`, `skopeo` and `docker load` read.

The layout's own description (index.json) and the one that docker reads (manifest.json) name the same blobs. Archives of one image each can be joined to one
from which every node takes the image for its own processor.
"""
import hashlib
import io
import json
import tarfile
import time
import zlib


class Blob:
    def __init__(self, data, kind):
        self.data, self.kind = data, kind
        self.digest = "sha256:" + hashlib.sha256(data).hexdigest()

    def path(self):
        return "blobs/" + self.digest.replace(":", "/")

    def descriptor(self, **more):
        return {"mediaType": self.kind, "digest": self.digest, "size": len(self.data), **more}


def compressed(data):
    """gzip, with a header of our own: Python's names another system from version to version."""
    raw = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    tail = zlib.crc32(data).to_bytes(4, "little") + (len(data) & 0xFFFFFFFF).to_bytes(4, "little")
    return b"\x1f\x8b\x08\0\0\0\0\0\x02\xff" + raw.compress(data) + raw.flush() + tail


class Layer(Blob):
    """A tar archive of files, compressed."""

    def __init__(self, tar, comment):
        self.uncompressed = "sha256:" + hashlib.sha256(tar).hexdigest()
        self.unpacked_size = len(tar)
        self.comment = comment
        super().__init__(compressed(tar), "application/vnd.oci.image.layer.v1.tar+gzip")


def stamp(seconds):
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


def as_json(value):
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


class Image:
    """An image of one architecture. `config` is what a runtime is told: entry point, environment, labels."""

    def __init__(self, layers, config, arch, created):
        self.layers, self.arch, self.created = layers, arch, created
        self.config = Blob(as_json({
            "architecture": arch, "os": "linux", "created": stamp(created), "config": config,
            "rootfs": {"type": "layers", "diff_ids": [layer.uncompressed for layer in layers]},
            "history": [{"created": stamp(created), "created_by": layer.comment} for layer in layers],
        }), "application/vnd.oci.image.config.v1+json")
        self.manifest = Blob(as_json({
            "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": self.config.descriptor(), "layers": [layer.descriptor() for layer in layers],
        }), "application/vnd.oci.image.manifest.v1+json")

    def archive(self, name, tag):
        """The bytes of the archive; the image is called `name:tag` in it."""
        top = index([self.manifest.descriptor(annotations=called(name, tag), platform={"architecture": self.arch, "os": "linux"})])
        docker = as_json([{"Config": self.config.path(), "RepoTags": [f"{name}:{tag}"], "Layers": [layer.path() for layer in self.layers]}])
        return layout(top, [self.config, self.manifest, *self.layers], self.created, {"manifest.json": docker})


def called(name, tag):
    """The name of an image, as a descriptor says it."""
    # What a kubelet makes of a name without a registry; an import under any other name would not be found.
    full = f"docker.io/library/{name}:{tag}" if "/" not in name else f"{name}:{tag}"
    return {"io.containerd.image.name": full, "org.opencontainers.image.ref.name": tag}


def index(descriptors):
    kind = "application/vnd.oci.image.index.v1+json"
    return Blob(as_json({"schemaVersion": 2, "mediaType": kind, "manifests": descriptors}), kind)


def layout(top, blobs, time, more=()):
    """The bytes of an image layout with these blobs, whose description is the index `top`. `more`: other files by their paths."""
    files = {"oci-layout": as_json({"imageLayoutVersion": "1.0.0"}), "index.json": top.data, **dict(more)}
    files.update({blob.path(): blob.data for blob in blobs})
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for path in ["blobs", "blobs/sha256"]:
            member = tarfile.TarInfo(path)
            member.type, member.mode, member.mtime = tarfile.DIRTYPE, 0o755, time
            archive.addfile(member)
        for path, data in sorted(files.items()):
            member = tarfile.TarInfo(path)
            member.mode, member.mtime, member.size = 0o644, time, len(data)
            archive.addfile(member, io.BytesIO(data))
    return out.getvalue()


def joined(paths, name, tag, time):
    """The bytes of one archive with the images of several, each of another architecture, and the digest of the index that names them.

    The layout's own description names that index alone, so that there is one image to be pushed, and one name. docker's description, which knows no architectures, is
    left out: of two images under one name it would take the last one."""
    descriptors, blobs = [], {}
    for path in paths:
        with tarfile.open(path) as archive:
            [described] = json.load(archive.extractfile("index.json"))["manifests"]
            descriptors.append({key: described[key] for key in ("mediaType", "digest", "size", "platform")})
            for member in archive:
                if member.isfile() and member.name.startswith("blobs/"):
                    blobs[member.name] = Blob(archive.extractfile(member).read(), "")
    descriptors.sort(key=lambda it: it["platform"]["architecture"])
    image = index(descriptors)
    return layout(index([image.descriptor(annotations=called(name, tag))]), [image, *blobs.values()], time), image.digest
