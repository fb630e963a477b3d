"""The files of an image as a value: what packages hold, merged, without running anything of theirs.

No maintainer script runs, so nothing of this machine gets in, no root is needed, and an image for another processor is made in the same way.
Written out, a tree is the same bytes each time: sorted, one time for all, owned by root.
"""
import io
import os
import stat
import subprocess
import tarfile

# Debian's files stand below /usr; these are links, and packages may still name them.
MERGED = {"bin": "usr/bin", "sbin": "usr/sbin", "lib": "usr/lib", "lib64": "usr/lib64"}
# What a container has no use for. Licences (copyright) stay.
LEFT_OUT = ("usr/share/man/", "usr/share/info/", "usr/share/locale/", "usr/share/lintian/", "usr/share/bash-completion/", "usr/share/zsh/",
            "usr/share/bug/", "usr/share/doc-base/", "usr/share/menu/", "usr/share/gdb/", "usr/share/ca-certificates/", "usr/include/",
            "usr/sbin/arpd/", "usr/sbin/update-ca-certificates/", "etc/ca-certificates", "usr/share/gcc/", "usr/share/fish/", "usr/share/base-files/", "usr/share/debianutils/", "usr/share/perl5/",
            "usr/lib/systemd/", "usr/lib/sysusers.d/", "usr/lib/tmpfiles.d/", "usr/lib/udev/", "usr/lib/pcrlock.d/", "usr/share/initramfs-tools/",
            "etc/init.d/", "etc/systemd/", "etc/cron", "etc/apt/", "etc/dpkg/", "etc/kernel/", "etc/update-motd.d/", "etc/skel/", "etc/bash_completion.d/",
            "home/", "media/", "mnt/", "srv/", "boot/", "var/local/", "var/backups/", "var/mail/", "var/spool/")


class Entry:
    """A folder, a file or a link; owned by root."""

    def __init__(self, kind, mode=0o755, data=b"", target=""):
        self.kind, self.mode, self.data, self.target = kind, mode, data, target


class Tree:
    def __init__(self):
        self.entries = {}  # by the path below the top, without a slash before or behind

    def folder(self, path, mode=0o755):
        self.put(path, Entry("folder", mode))

    def file(self, path, data, mode=0o644):
        self.put(path, Entry("file", mode, data.encode() if isinstance(data, str) else data))

    def copy(self, path, source, mode=0o755):
        with open(source, "rb") as handle:
            self.file(path, handle.read(), mode)

    def link(self, path, target):
        self.put(path, Entry("link", 0o777, target=target))

    def put(self, path, entry):
        path = merged(path)
        if not path:
            return
        known = self.entries.get(path)
        if known and known.kind == "link" and entry.kind == "folder":
            return  # a folder that is a link here, like /var/run
        parent = os.path.dirname(path)
        if parent and parent not in self.entries:
            self.folder(parent)
        self.entries[path] = entry

    def package(self, deb, only=None):
        """Adds the files of a Debian package; with `only`, {its path: path here}, these alone and the licence."""
        packed = subprocess.run(["dpkg-deb", "--fsys-tarfile", deb], stdout=subprocess.PIPE, check=True).stdout
        with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
            for member in archive:
                path = merged(member.name)
                if only is not None and not is_licence(path):
                    path = only.get(path)
                # The licences of some packages lie in another one's folder.
                licences_elsewhere = member.issym() and os.path.dirname(path or "") == "usr/share/doc"
                if path and (licences_elsewhere or not is_left_out(path)):
                    self.member(archive, member, path)

    def member(self, archive, member, path):
        mode = stat.S_IMODE(member.mode) & ~(stat.S_ISUID | stat.S_ISGID)
        if member.isdir():
            self.folder(path, mode)
        elif member.issym():
            self.link(path, member.linkname)
        elif member.islnk():
            self.entries[path] = self.entries[merged(member.linkname)]
        elif member.isfile():
            self.file(path, archive.extractfile(member).read(), mode)

    def add(self, other):
        """The files of another tree, above these."""
        self.entries.update(other.entries)

    def drop_empty(self, kept):
        """Removes folders with nothing in them, but for those that are kept."""
        for path in sorted(self.entries, reverse=True):
            if self.entries[path].kind == "folder" and path not in kept and not any(p.startswith(path + "/") for p in self.entries):
                del self.entries[path]

    def packed(self, time):
        """The bytes of a tar archive; every file is of this time (seconds since 1970)."""
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode="w", format=tarfile.GNU_FORMAT) as archive:
            for path, entry in sorted(self.entries.items()):
                member = tarfile.TarInfo(path)
                member.type = {"folder": tarfile.DIRTYPE, "file": tarfile.REGTYPE, "link": tarfile.SYMTYPE}[entry.kind]
                member.mode, member.mtime, member.linkname, member.size = entry.mode, time, entry.target, len(entry.data)
                archive.addfile(member, io.BytesIO(entry.data) if entry.kind == "file" else None)
        return out.getvalue()


def merged(path):
    path = os.path.normpath(path).strip("/")
    path = "" if path == "." else path
    first, slash, rest = path.partition("/")
    return MERGED[first] + slash + rest if first in MERGED and slash else path


def is_licence(path):
    return path.startswith("usr/share/doc/") and path.endswith("/copyright")


def is_left_out(path):
    if path.startswith("usr/share/doc/"):
        return not is_licence(path)
    return f"{path}/".startswith(LEFT_OUT) or "/gconv/" in f"{path}/" or path.endswith("/perl-base")
