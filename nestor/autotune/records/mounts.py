"""Which file system holds a path: SQLite's locks and shared memory do not work across machines."""

from __future__ import annotations

import re
from pathlib import Path

NETWORK_FILE_SYSTEMS = frozenset(
    "9p afp afs beegfs ceph cifs coda davfs fhgfs gfs2 glusterfs gpfs lustre ncpfs nfs nfs4 ocfs2 "
    "orangefs pvfs2 smb2 smb3 smbfs vboxsf wekafs".split()
)
_NETWORK_HELPERS = frozenset(
    "ceph curlftpfs davfs2 gcsfuse glusterfs goofys gvfsd-fuse juicefs mfs moosefs rclone s3fs "
    "seaweedfs smbnetfs sshfs".split()
)
"""What stands behind ``fuse.`` for file systems of other machines."""


def file_system_of(path: Path, mounts: str | None = None) -> str:
    """Type of the file system that holds ``path`` (or will), e.g. ``ext4``; empty if unknown.

    Args: mounts: the text of ``/proc/mounts``; None: this machine's.
    """
    if mounts is None:
        try:
            mounts = Path("/proc/self/mounts").read_text(encoding="utf-8", errors="replace")
        except OSError:
            return ""
    place = path.resolve()
    best, kind = -1, ""
    for line in mounts.splitlines():
        parts = line.split()
        if len(parts) < 3:
            continue
        # Spaces and the like stand in octal: \040.
        point = Path(re.sub(r"\\([0-7]{3})", lambda m: chr(int(m[1], 8)), parts[1]))
        # A later mount on the same place hides the earlier one.
        if (place == point or point in place.parents) and len(point.parts) >= best:
            best, kind = len(point.parts), parts[2]
    return kind


def is_network_file_system(kind: str) -> bool:
    """Whether other machines may hold or share what lies on a file system of this type."""
    head, _, helper = kind.partition(".")
    return head in NETWORK_FILE_SYSTEMS or (head == "fuse" and helper in _NETWORK_HELPERS)
