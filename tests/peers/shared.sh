# SPDX-License-Identifier: Apache-2.0 OR MIT
# Two functions of one card and a namespace that both have: as two paths of one device, and as two devices.

one=$(io_functions | nth 1) two=$(io_functions | nth 2)
nsid=3
plan 6

names() {
  a=$(controller $one) b=$(controller $two)
  is "subsystem" $(attribute $a subsysnqn) $(attribute $b subsysnqn)
  differ "controller id" $(attribute $a cntlid) $(attribute $b cntlid)
  for c in $a $b; do
    nvme id-ns /dev/$c -n $nsid -b >$T/ns-$c.bin
    is "NMIC of the shared namespace at $c" $(($(number $T/ns-$c.bin 30 1) & 1)) 1
  done
  is NGUID $(bytes $T/ns-$a.bin 104 16) $(bytes $T/ns-$b.bin 104 16)
  nvme id-ns /dev/$a -n 1 -b >$T/ns.bin
  is "NMIC of a private namespace" $(($(number $T/ns.bin 30 1) & 1)) 0
}
check "both controllers tell the same of the shared namespace" names

# Writes that completed on a path.
writes() { awk '{ print $5 }' $(path_of $1 $nsid)/stat; }
paths() {
  a=$(controller $one) b=$(controller $two)
  d=$(block $a $nsid)
  is "device of the second path" $(block $b $nsid) $d
  for s in /sys/class/nvme-subsystem/*; do [ ! -e $s/$a ] || echo round-robin >$s/iopolicy; done
  at_a=$(writes $a) at_b=$(writes $b)
  drive --filename=$d --ioengine=io_uring --iodepth=16 --rw=randwrite --bsrange=4k-32k --size=4M --verify=crc32c
  at_least "writes on the first path" $(writes $a) $((at_a + 10))
  at_least "writes on the second path" $(writes $b) $((at_b + 10))
}
check "multipath: one device, I/O on both paths" paths

has_path() { p=$(controller $1); [ -n "$p" ] && is_live $p && [ -n "$(path_of $p $nsid)" ]; }
failover() {
  d=$(block $(controller $one) $nsid)
  load_start $d
  for gone in $one $two; do
    echo 1 >/sys/bus/pci/devices/$gone/remove
    load_moves $d
    echo 1 >/sys/bus/pci/rescan
    wait_for has_path $gone
    load_moves $d
  done
  load_stop
}
check "multipath: either path may go, and come back, under load" failover

apart() {
  reload multipath=N ""
  wait_for ready $one $nsid; wait_for ready $two $nsid
  a=$(block $(controller $one) $nsid) b=$(block $(controller $two) $nsid)
  differ "the second device" $b $a
  for pair in "$a $b" "$b $a"; do
    set -- $pair
    dd if=/dev/urandom of=$T/data bs=64k count=16
    dd if=$T/data of=$1 bs=64k seek=16 oflag=direct
    dd if=$2 of=$T/got bs=64k skip=16 count=16 iflag=direct
    cmp $T/data $T/got
  done
}
check "apart: what one function writes, the other reads" apart

crossed() {
  a=$(block $(controller $one) $nsid) b=$(block $(controller $two) $nsid)
  # Both write at once, each its half, and then verify each other's.
  for step in "randwrite 0 4M --do_verify=0" "randread 4M 0"; do
    set -- $step
    fio --direct=1 --thread --verify_fatal=1 --output-format=json --output=$T/fio.json --ioengine=io_uring --iodepth=16 --bs=16k --size=4M \
      --verify=crc32c --rw=$1 $4 --name=a --filename=$a --offset=$2 --name=b --filename=$b --offset=$3
    is "fio's error" "$(json error $T/fio.json)" 0
  done
}
check "apart: each function verifies what the other wrote" crossed

back() { reload "" ""; wait_for has_path $one; wait_for has_path $two; is "one device again" $(block $(controller $two) $nsid) $(block $(controller $one) $nsid); }
check "and together again" back

finish
