# SPDX-License-Identifier: Apache-2.0 OR MIT
# Log pages: what they count, and that errors are in them.

c=$(controller $(io_functions | nth 1))
d=$(block $c 1)
size=$(blockdev --getss $d)
blocks=$(($(blockdev --getsize64 $d) / size))
plan 7

smart() { nvme smart-log /dev/$c -b >$T/smart.bin; is length $(wc -c <$T/smart.bin) 512; }
healthy() {
  smart
  is "critical warnings" $(number $T/smart.bin 0 1) 0
  at_least kelvin $(number $T/smart.bin 1 2) 273
  at_least "373 less kelvin" $((373 - $(number $T/smart.bin 1 2))) 0
  is "available spare" $(number $T/smart.bin 3 1) 100
  nvme smart-log /dev/$c -o json >$T/smart.json
  is "temperature in JSON" $(json temperature $T/smart.json) $(number $T/smart.bin 1 2)
}
check "smart-log shows a healthy controller" healthy

# Offsets: 32 data units read, 48 written (thousands of 512 bytes, rounded up), 64 reads, 80 writes.
counts() {
  smart; cp $T/smart.bin $T/before.bin
  dd if=/dev/zero of=$d bs=32k count=256 oflag=direct
  dd if=$d of=/dev/null bs=32k count=128 iflag=direct
  smart
  is writes $(($(number $T/smart.bin 80 8) - $(number $T/before.bin 80 8))) 256
  is reads $(($(number $T/smart.bin 64 8) - $(number $T/before.bin 64 8))) 128
  # 8 MiB are 16.384 units, 4 MiB 8.192.
  units=$(($(number $T/smart.bin 48 8) - $(number $T/before.bin 48 8)))
  [ $units = 16 ] || is "units written" $units 17
  units=$(($(number $T/smart.bin 32 8) - $(number $T/before.bin 32 8)))
  [ $units = 8 ] || is "units read" $units 9
}
check "smart-log counts commands and data" counts

# An entry: 0 count, 8 SQID, 10 CID, 12 status with the phase bit, 16 LBA, 24 NSID.
errors() {
  nvme error-log /dev/$c -e 1 -b >$T/before.bin
  refused 80 nvme read $d -s $((blocks + 7)) -c 0 -z $size -d $T/got
  nvme error-log /dev/$c -e 1 -b >$T/error.bin
  is length $(wc -c <$T/error.bin) 64
  is "error count" $(number $T/error.bin 0 8) $(($(number $T/before.bin 0 8) + 1))
  at_least "submission queue" $(number $T/error.bin 8 2) 1
  is status $(($(number $T/error.bin 12 2) >> 1 & 0x7ff)) $((0x80))
  is LBA $(number $T/error.bin 16 8) $((blocks + 7))
  is NSID $(number $T/error.bin 24 4) 1
  nvme smart-log /dev/$c -b >$T/smart.bin
  at_least "errors in smart-log" $(number $T/smart.bin 176 8) 1
}
check "error-log tells which command failed, and how" errors

firmware() {
  nvme fw-log /dev/$c -b >$T/fw.bin
  is "active slot" $(($(number $T/fw.bin 0 1) & 7)) 1
  is revision "$(ascii $T/fw.bin 8 8)" "$(attribute $c firmware_rev | sed 's/ *$//')"
}
check "fw-log names the firmware" firmware

effects() {
  # nvme-cli's effects-log has no raw form.
  nvme get-log /dev/$c --log-id=5 --log-len=4096 -b >$T/effects.bin
  is length $(wc -c <$T/effects.bin) 4096
  # Identify; flush, write, read, and that a write changes content (bit 1).
  is identify $(($(number $T/effects.bin 24 4) & 1)) 1
  for opcode in 0 1 2; do is "opcode $opcode" $(($(number $T/effects.bin $((1024 + 4 * opcode)) 4) & 1)) 1; done
  is "write changes content" $(($(number $T/effects.bin 1028 4) & 2)) 2
  is "an opcode that is not there" $(number $T/effects.bin $((1024 + 4 * 0x7f)) 4) 0
}
if [ $(($(nvme id-ctrl /dev/$c -o json | sed -n 's/.*"lpa":\([0-9]*\).*/\1/p' | head -n 1) & 2)) = 2 ]; then
  check "effects-log lists what is supported" effects
else
  skip "effects-log lists what is supported" "LPA says there is none"
fi

# A part of a page gives the same bytes as the whole.
parts() {
  nvme get-log /dev/$c --log-id=2 --log-len=512 -b >$T/whole
  nvme get-log /dev/$c --log-id=2 --log-len=16 --lpo=176 -b >$T/part
  is "16 bytes from 176" $(bytes $T/part 0 16) $(bytes $T/whole 176 16)
}
check "a log page can be read in parts" parts

unknown() { refused 109 nvme get-log /dev/$c --log-id=0xbe --log-len=512; }
check "an unknown log page is refused" unknown

finish
