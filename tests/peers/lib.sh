# SPDX-License-Identifier: Apache-2.0 OR MIT
# What every peers script uses: KTAP, how to find controllers and namespaces, waiting, and load.
# Sourced under busybox sh in L1. SERIAL is the card's serial number; the rig sets it.
#
# Programs stand in the initramfs, never on a disk of the card: under TCG, code that a device wrote can be stale.

# busybox runs its own applet before a program of the same name: give such a program's path.
PATH=/usr/sbin:/usr/bin:/bin
T=/tmp/peers; mkdir -p $T
tests=0 failures=0

# plan N: how many checks follow.
plan() { planned=$1; echo "1..$1"; }

# check NAME COMMAND...: one result. The command runs in a shell of its own under `set -e`; what it says is shown
# when it fails.
check() {
  tests=$((tests + 1)) name=$1; shift
  ( set -e; "$@" ) </dev/null >$T/said 2>&1
  rc=$?
  if [ $rc = 0 ]; then
    echo "ok $tests $name"
  else
    failures=$((failures + 1))
    tail -n 40 $T/said | sed 's/^/#   /'
    echo "# exit code $rc of: $*"
    echo "not ok $tests $name"
  fi
}

# skip NAME WHY: a result that cannot be had here.
skip() { tests=$((tests + 1)); echo "ok $tests $1 # SKIP $2"; }

finish() { [ $failures = 0 ] && [ $tests = "$planned" ]; exit; }

fail() { echo "$*"; return 1; }
# is WHAT GOT WANT, at_least WHAT GOT LEAST: compare and say both.
is() { [ "$2" = "$3" ] || fail "$1 is '$2', not '$3'"; }
at_least() { [ "$2" -ge "$3" ] 2>/dev/null || fail "$1 is '$2', less than $3"; }
differ() { [ "$2" != "$3" ] || fail "$1 is still '$2'"; }

# wait_for COMMAND...: until it succeeds; a minute is forever.
wait_for() {
  for _ in $(seq 1200); do "$@" >/dev/null 2>&1 && return; usleep 50000; done
  fail "waited in vain for: $*"
}

# refused STATUS COMMAND...: the controller must answer with this status, in hex (SCT and SC, as nvme-cli prints it).
refused() {
  want=$1; shift
  if "$@" >$T/refused 2>&1; then :; fi
  got=$(sed -n 's/.*(0x\([0-9a-f]*\)).*/\1/p' $T/refused | head -n 1)
  [ -n "$got" ] || { cat $T/refused; fail "no status from: $*"; return; }
  # Do Not Retry and More say nothing about the reason.
  is "status of $*" "$(printf %x $((0x$got & 0x7ff)))" "$want"
}

# json FIELD FILE: the first value of that name in what nvme-cli and fio print.
json() { sed -n "s/^[[:space:]]*\"$1\"[[:space:]]*:[[:space:]]*\"\\{0,1\\}\\([^\",]*\\)\"\\{0,1\\},\\{0,1\\}\$/\\1/p" $2 | head -n 1; }

# bytes FILE OFFSET COUNT: in hex; number FILE OFFSET COUNT: little-endian, as a decimal number.
bytes() { dd if=$1 bs=1 skip=$2 count=$3 2>/dev/null | xxd -p | tr -d '\n'; }
number() { echo $((0x$(bytes $1 $2 $3 | fold -w 2 | tac | tr -d '\n'))); }
tac() { sed -n '1!G;h;$p'; }
ascii() { dd if=$1 bs=1 skip=$2 count=$3 2>/dev/null | sed 's/ *$//'; }

# io_functions: PCI addresses of the I/O controllers, in order; admin_functions: of the administrative ones.
functions() { for d in /sys/bus/pci/devices/*; do if [ "$(cat $d/class)" = $1 ]; then basename $d; fi; done; }
io_functions() { functions 0x010802; }
admin_functions() { functions 0x010803; }
nth() { sed -n "$1p"; }

# controller ADDRESS: its name, such as nvme0.
controller() { ls /sys/bus/pci/devices/$1/nvme 2>/dev/null | head -n 1; }
# path_of CONTROLLER NSID: the sysfs folder of a namespace as this controller shows it.
path_of() { for d in /sys/class/nvme/$1/nvme*n*; do if [ "$(cat $d/nsid 2>/dev/null)" = $2 ]; then echo $d; fi; done; }
# block CONTROLLER NSID: its block device; with multipath, the one over all paths.
block() { p=$(path_of $1 $2); [ -n "$p" ] && echo /dev/${p##*/} | sed 's/c[0-9]*n/n/'; }
attribute() { cat /sys/class/nvme/$1/$2; }
is_live() { [ "$(attribute $1 state)" = live ]; }
# ready ADDRESS NSID: the driver serves this namespace.
ready() { ready=$(controller $1); [ -n "$ready" ] && is_live $ready && [ -b "$(block $ready $2)" ]; }

alive() { alive=$(controller $1); [ -n "$alive" ] && is_live $alive; }
# scanned CONTROLLER: the driver has found every namespace that the controller has. It looks when it is live already.
scanned() {
  [ $(ls -d /sys/class/nvme/$1/nvme*n* 2>/dev/null | wc -l) = $(nvme list-ns /dev/$1 -o json | grep -o '"nsid":' | wc -l) ]
}
settled() { alive $1 && scanned $alive; }
# The driver probes beside init.
settle() { for f in $(io_functions); do wait_for settled $f; done; }
# reload CORE PCI: loads the driver anew with these module parameters.
reload() {
  rmmod nvme && rmmod nvme_core && insmod /zs/modules/nvme_core.ko $1 && insmod /zs/modules/nvme.ko $2
}

# drive ARGUMENTS...: fio with what all uses share. Any error, also of verification, is a failure.
drive() {
  fio --name=v --direct=1 --thread --group_reporting --verify_fatal=1 --output-format=json --output=$T/fio.json "$@" ||
    { grep -v '^ ' $T/fio.json | head -n 20; return 1; }
  is "fio's error" "$(json error $T/fio.json)" 0
}

# Load that goes on until it is told to stop, and verifies all the time. Its first I/O has completed when
# load_start returns.
completed() { awk '{ print $1 + $5 }' /sys/block/$(basename $1)/stat; }
load_start() {
  rm -f $T/load.*
  fio --name=load --filename=$1 --direct=1 --thread --numjobs=2 --group_reporting --ioengine=io_uring --iodepth=16 \
    --rw=randwrite --bsrange=4k-32k --size=8M --offset_increment=8M --time_based --runtime=3600 \
    --verify=crc32c --verify_backlog=64 --verify_fatal=1 --output-format=json --output=$T/load.json >$T/load.said 2>&1 &
  echo $! >$T/load.pid
  load_moves $1
}
more_completed() { [ "$(completed $1)" -gt $2 ]; }
load_runs() { kill -0 $(cat $T/load.pid) 2>/dev/null; }
# load_moves DEVICE: I/O completes now.
load_moves() {
  wait_for more_completed $1 $(($(completed $1) + 50))
  load_runs || { cat $T/load.said; fail "the load ended"; }
}
# load_stop: ends it in peace; an error until now is a failure.
load_stop() {
  load_runs || { cat $T/load.said; fail "the load ended before it was told to"; return; }
  kill -INT $(cat $T/load.pid)
  wait_for load_gone
  is "fio's error under load" "$(json error $T/load.json)" 0
  is "verification errors" "$(grep -c 'verify failed' $T/load.said)" 0
}
load_gone() { ! load_runs; }

settle
