# SPDX-License-Identifier: Apache-2.0 OR MIT
# Single I/O commands with nvme-cli: what they move, and what is refused.

c=$(controller $(io_functions | nth 1))
d=$(block $c 1)
size=$(blockdev --getss $d)
blocks=$(($(blockdev --getsize64 $d) / size))
n=$((65536 / size))
dd if=/dev/urandom of=$T/a bs=64k count=1 2>/dev/null
dd if=/dev/urandom of=$T/b bs=64k count=1 2>/dev/null
dd if=/dev/zero of=$T/zero bs=64k count=1 2>/dev/null
plan 11

# put LBA FILE, get LBA FILE: 64 KiB.
put() { nvme write $d -s $1 -c $((n - 1)) -z 65536 -d $2; }
# nvme-cli does not shorten a file that is there.
get() { rm -f $2; nvme read $d -s $1 -c $((n - 1)) -z 65536 -d $2; }
holds() { get $1 $T/got; cmp $T/got $2; }

write_read() {
  put 0 $T/b; put $((4 * n)) $T/a; put $((5 * n)) $T/b
  holds $((4 * n)) $T/a; holds $((5 * n)) $T/b; holds 0 $T/b
  # The kernel's own path sees the same bytes.
  dd if=$d of=$T/got bs=64k skip=4 count=1 iflag=direct
  cmp $T/got $T/a
}
check "what write brought, read gives" write_read

last() { put $((blocks - n)) $T/a; holds $((blocks - n)) $T/a; }
check "the last block can be used" last

compare() {
  nvme compare $d -s $((4 * n)) -c $((n - 1)) -z 65536 -d $T/a
  refused 285 nvme compare $d -s $((4 * n)) -c $((n - 1)) -z 65536 -d $T/b
  # One byte, the last.
  cp $T/a $T/c; printf '\x5a' | dd of=$T/c bs=1 seek=65535 conv=notrunc
  cmp -s $T/a $T/c || refused 285 nvme compare $d -s $((4 * n)) -c $((n - 1)) -z 65536 -d $T/c
}
check "compare tells equal from different" compare

zeroes() {
  put $((8 * n)) $T/a; put $((9 * n)) $T/a; put $((10 * n)) $T/a
  nvme write-zeroes $d -s $((9 * n)) -c $((n - 1))
  holds $((9 * n)) $T/zero; holds $((8 * n)) $T/a; holds $((10 * n)) $T/a
}
check "write-zeroes clears its blocks and no others" zeroes

trim() {
  nvme id-ns $d -b >$T/ns.bin
  put $((12 * n)) $T/a; put $((13 * n)) $T/a; put $((14 * n)) $T/b; put $((15 * n)) $T/b
  # Two ranges in one command.
  nvme dsm $d -d -s $((12 * n)),$((14 * n)) -b $n,$n -a 0,0
  holds $((13 * n)) $T/a; holds $((15 * n)) $T/b
  # DLFEAT says what deallocated blocks read as; it must be what they do read as.
  is "DLFEAT's read behaviour" $(($(number $T/ns.bin 33 1) & 7)) 1
  holds $((12 * n)) $T/zero; holds $((14 * n)) $T/zero
}
check "dsm deallocates each of its ranges and nothing else" trim

check "flush" nvme flush $d

outside() {
  refused 80 nvme read $d -s $blocks -c 0 -z $size -d $T/got
  refused 80 nvme read $d -s $((blocks - 1)) -c 1 -z $((2 * size)) -d $T/got
  refused 80 nvme write $d -s 0xffffffffffffffff -c 0 -z $size -d $T/a
  refused 80 nvme write-zeroes $d -s $((blocks - 1)) -c 1
  refused 80 nvme compare $d -s $blocks -c 0 -z $size -d $T/a
  put 0 $T/a; holds 0 $T/a
}
check "blocks outside the namespace are refused" outside

longest() {
  nvme id-ctrl /dev/$c -b >$T/ctrl.bin
  limit=$((4096 << $(number $T/ctrl.bin 77 1)))
  differ limit $limit 4096
  # With translated DMA the kernel stops where its cache of I/O addresses does.
  group=$(cat /sys/class/nvme/$c/device/iommu_group/type 2>/dev/null || echo identity)
  case $group in DMA*) [ $limit -le 131072 ] || limit=131072 ;; esac
  is "the kernel's limit" $(($(cat /sys/block/$(basename $d)/queue/max_hw_sectors_kb) * 1024)) $limit
  dd if=/dev/urandom of=$T/long bs=$limit count=1
  dd if=$T/long of=$d bs=$limit count=1 oflag=direct
  nvme read $d -s 0 -c $((limit / size - 1)) -z $limit -d $T/got
  cmp $T/got $T/long
}
check "the longest transfer is one command" longest

opcodes() {
  refused 1 nvme io-passthru $d --opcode=0x7f --namespace-id=1
  refused 1 nvme admin-passthru /dev/$c --opcode=0x7f
}
check "unknown opcodes are refused" opcodes

format() {
  put 0 $T/a
  nvme id-ctrl /dev/$c -b >$T/ctrl.bin
  is "OACS, format" $(($(number $T/ctrl.bin 256 2) & 2)) 0
  refused 1 nvme admin-passthru /dev/$c --opcode=0x80 --namespace-id=1
  holds 0 $T/a
}
check "format is not offered, and refused" format

after() { is_live $c; dd if=$d of=$T/got bs=64k count=16 iflag=direct; is "bytes read" $(wc -c <$T/got) 1048576; }
check "the controller works after all that" after

finish
