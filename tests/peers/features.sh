# SPDX-License-Identifier: Apache-2.0 OR MIT
# Features: what was set is what is read, until a reset.

c=$(controller $(io_functions | nth 1))
plan 8

# value FID: the raw result, not nvme-cli's reading of it.
value() { nvme admin-passthru /dev/$c --opcode=0x0a --cdw10=$(($1)) 2>&1 | sed -n 's/.*result: 0x\([0-9a-f]*\).*/\1/p'; }
number_of() { got=$(value "$@"); [ -n "$got" ] || { echo "no value for feature $1"; return 1; }; echo $((0x$got)); }
set_() { nvme set-feature /dev/$c -f $1 -V $2; }

temperature() {
  old=$(number_of 4)
  set_ 4 $((350)); is threshold $(number_of 4) 350
  set_ 4 $((360)); is threshold $(number_of 4) 360
  is "nvme-cli's reading" "$(nvme get-feature /dev/$c -f 4 | sed -n 's/.*value:0x//p')" 00000168
  set_ 4 $old
}
check "temperature threshold" temperature

cache() {
  nvme id-ctrl /dev/$c -b >$T/ctrl.bin
  is "volatile write cache present" $(($(number $T/ctrl.bin 525 1) & 1)) 1
  set_ 6 0; is cache $(number_of 6) 0
  set_ 6 1; is cache $(number_of 6) 1
}
check "volatile write cache" cache

coalescing() {
  old=$(number_of 8)
  set_ 8 $((0x0203)); is coalescing $(number_of 8) $((0x0203))
  set_ 8 $old; is coalescing $(number_of 8) $old
}
check "interrupt coalescing" coalescing

arbitration() {
  old=$(number_of 1)
  set_ 1 3; is burst $(($(number_of 1) & 7)) 3
  set_ 1 $old
}
check "arbitration" arbitration

queues() {
  # 0's based, both kinds; as many as the driver uses at least.
  got=$(number_of 7)
  at_least "submission queues" $(((got & 0xffff) + 1)) $(nproc)
  at_least "completion queues" $(((got >> 16) + 1)) $(nproc)
}
check "number of queues" queues

host_id() {
  printf '0123456789abcdef' >$T/host
  nvme set-feature /dev/$c -f 0x81 -V 1 -l 16 -d $T/host
  nvme get-feature /dev/$c -f 0x81 --cdw11=1 -l 16 -b >$T/got
  is "host identifier" "$(bytes $T/got 0 16)" "$(bytes $T/host 0 16)"
}
check "host identifier" host_id

unknown() {
  refused 2 nvme get-feature /dev/$c -f 0x7e
  refused 2 nvme set-feature /dev/$c -f 0x7e -V 1
}
check "unknown features are refused" unknown

# What a reset must forget. (The driver sets the cache and the queues itself.)
reset() { nvme reset /dev/$c; wait_for is_live $c; }
forgets() {
  reset
  default=$(number_of 4)
  set_ 4 $((default - 9)); is threshold $(number_of 4) $((default - 9))
  reset
  is "threshold after a reset" $(number_of 4) $default
}
check "a reset brings back the default" forgets

finish
