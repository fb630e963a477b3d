#!/bin/busybox sh
# /init of the guest. The machine's own root comes in read-only (virtiofs) below a layer in memory: every
# program installed on the machine runs here, and nothing that is written here comes back.
/bin/busybox --install -s /bin
export PATH=/bin:/sbin:/usr/bin:/usr/sbin
fail() { echo "guest: $*"; sleep 1; poweroff -f; }

mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
while read -r module; do insmod "/modules/$module" || echo "guest: cannot load $module"; done < /modules/list

. /guest.conf   # NAME, MODULES (folder on the machine), PRELOAD, SHARES ("path:rw path:ro")

mkdir -p /lower /layer /new
mount -t virtiofs -o ro root /lower || fail "no root file system"
mount -t tmpfs -o size=75% tmpfs /layer
mkdir /layer/upper /layer/work
mount -t overlay -o lowerdir=/lower,upperdir=/layer/upper,workdir=/layer/work overlay /new || fail "no overlay"

for path in proc sys dev; do mkdir -p /new/$path; mount --move /$path /new/$path; done
for path in tmp run; do mkdir -p /new/$path; mount -t tmpfs tmpfs /new/$path; done
chmod 1777 /new/tmp
mkdir -p /new/dev/pts /new/dev/shm /new/run/netns /new/run/lock /new/run/lab
ln -s /proc/self/fd /new/dev/fd
ln -s /proc/self/fd/0 /new/dev/stdin
ln -s /proc/self/fd/1 /new/dev/stdout
ln -s /proc/self/fd/2 /new/dev/stderr
mount -t devpts -o mode=620,ptmxmode=666 devpts /new/dev/pts
mount -t tmpfs tmpfs /new/dev/shm
mount -t cgroup2 cgroup2 /new/sys/fs/cgroup

number=0
for share in $SHARES; do
  path=${share%:*}
  mkdir -p "/new$path"
  mount -t virtiofs -o "${share##*:}" "share$number" "/new$path" || fail "no share $path"
  number=$((number + 1))
done
mkdir -p "/new/lib/modules/$(uname -r)"
mount -o bind "/new$MODULES" "/new/lib/modules/$(uname -r)" || fail "no modules"
cp /guest_exec.py /token /new/run/lab/
chmod 600 /new/run/lab/token

hostname "$NAME"
# No default route, and none from router advertisements: an address that nothing here serves is unreachable
# instead of leaving towards the machine's own network.
for key in accept_ra autoconf; do echo 0 > "/new/proc/sys/net/ipv6/conf/eth0/$key"; done
ip link set lo up
ip link set eth0 up
ip addr add 10.0.2.15/24 dev eth0

cat > /new/run/lab/start <<SCRIPT
#!/bin/sh
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root
[ -z "$PRELOAD" ] || modprobe -a $PRELOAD > /run/lab/preload.log 2>&1
while :; do /usr/bin/python3 -ISE /run/lab/guest_exec.py; echo "guest: the command server ended"; sleep 1; done
SCRIPT
exec switch_root /new /bin/sh /run/lab/start
