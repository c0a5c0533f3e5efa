# SPDX-License-Identifier: Apache-2.0 OR MIT
# fio writes and verifies: every queue, mixed sizes, odd addresses, discards, zeroes, passthrough.

c=$(controller $(io_functions | nth 1))
small=$(block $c 1) large=$(block $c 2)
plan 10

queue_commands() { for q in 1 2; do awk -v q="${c}q$q\$" '$0 ~ q { for (i = 2; i <= 3; i++) n += $i } END { print n + 0 }' /proc/interrupts; done; }
both_queues() {
  set -- $(queue_commands)
  drive --filename=$small --ioengine=io_uring --iodepth=32 --rw=randwrite --bsrange=512-128k --size=6M --offset_increment=6M \
    --numjobs=2 --cpus_allowed=0,1 --cpus_allowed_policy=split --verify=crc32c
  first=$1 second=$2
  set -- $(queue_commands)
  at_least "interrupts of queue 1" $1 $((first + 1))
  at_least "interrupts of queue 2" $2 $((second + 1))
}
check "two queues, blocks of 512 bytes, 512 bytes to 128 KiB" both_queues

blocks_4096() {
  is "block size" $(blockdev --getss $large) 4096
  drive --filename=$large --ioengine=libaio --iodepth=32 --rw=randwrite --bsrange=4k-128k --size=12M --verify=sha256
}
check "blocks of 4096 bytes, 4 to 128 KiB" blocks_4096

mixed() {
  drive --filename=$large --ioengine=io_uring --iodepth=16 --rw=randrw --rwmixread=40 --bssplit=4k/50:16k/30:256k/20 --size=12M --verify=crc32c \
    --verify_backlog=32
}
check "reads and writes mixed, longer than one command" mixed

# Buffers that begin in the middle of a page: PRP1 with an offset.
odd() { drive --filename=$small --ioengine=io_uring --iodepth=8 --rw=randwrite --bsrange=512-64k --size=4M --mem_align=512 --verify=crc32c; }
check "buffers that begin inside a page" odd

# The driver's own parameter decides between PRP and SGL.
sgl() {
  nvme id-ctrl /dev/$c -b >$T/ctrl.bin
  differ "SGL support" $(($(number $T/ctrl.bin 536 4) & 3)) 0
  parameter=/sys/module/nvme/parameters/sgl_threshold
  old=$(cat $parameter)
  echo 1 >$parameter
  drive --filename=$small --ioengine=io_uring --iodepth=8 --rw=randwrite --bsrange=512-128k --size=4M --mem_align=512 --verify=crc32c
  echo 0 >$parameter
  drive --filename=$small --ioengine=io_uring --iodepth=8 --rw=randread --bsrange=512-128k --size=4M
  echo $old >$parameter
}
check "SGLs for everything, then PRPs for everything" sgl

# One at a time: fio does not keep a block's write behind its discard.
trims() { drive --filename=$large --ioengine=psync --numjobs=2 --rw=randtrimwrite --bs=16k --size=4M --offset_increment=4M --verify=crc32c; }
check "each block discarded, then written" trims

# left DEVICE MIB COUNT: how many bytes are not zero.
left() { dd if=$1 bs=1M skip=$2 count=$3 iflag=direct | tr -d '\0' | wc -c; }
discard() {
  dd if=/dev/urandom of=$large bs=1M count=8 oflag=direct
  /usr/sbin/blkdiscard -o 2M -l 4M $large
  is "bytes left of what was discarded" $(left $large 2 4) 0
  at_least "bytes left before" $(left $large 0 2) 2000000
  at_least "bytes left behind" $(left $large 6 2) 2000000
}
check "blkdiscard" discard

zeroout() {
  at_least "the kernel's limit for write zeroes" $(cat /sys/block/$(basename $large)/queue/write_zeroes_max_bytes) 4096
  dd if=/dev/urandom of=$large bs=1M count=8 oflag=direct
  /usr/sbin/blkdiscard -z -o 1M -l 6M $large
  is "bytes left of what was zeroed" $(left $large 1 6) 0
  at_least "bytes left before" $(left $large 0 1) 1000000
  at_least "bytes left behind" $(left $large 7 1) 1000000
}
check "blkdiscard --zeroout" zeroout

# io_uring's NVMe passthrough, on the character device.
passthrough() {
  # The character device has the number of the disk; the one before it may be another.
  character=/dev/$(ls /sys/class/nvme-generic | grep "^ng[0-9]*n${small##*n}\$")
  drive --filename=$character --ioengine=io_uring_cmd --cmd_type=nvme --direct=0 --iodepth=16 --rw=randwrite --bs=8k --size=4M --verify=crc32c
}
check "io_uring passthrough" passthrough

# The test of the test: a changed byte is found.
planted() {
  drive --filename=$small --ioengine=psync --rw=write --bs=64k --size=1M --verify=crc32c
  printf 'X' | dd of=$small bs=1 seek=700001 conv=notrunc
  sync
  if fio --name=v --direct=1 --filename=$small --ioengine=psync --rw=read --bs=64k --size=1M --verify=crc32c >$T/planted 2>&1; then
    cat $T/planted; fail "fio did not see a changed byte"
  else
    grep -q 'verify failed' $T/planted || { cat $T/planted; false; }
  fi
}
check "a changed byte is found" planted

finish
