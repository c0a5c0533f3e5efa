# SPDX-License-Identifier: Apache-2.0 OR MIT
# All functions of one card at the same time. FUNCTIONS is their number; function N has namespace N alone.

plan 4
all=$(io_functions)
each() { for f in $all; do "$@" $f; done; }

present() {
  is functions $(echo $all | wc -w) $FUNCTIONS
  each wait_for alive
  is "different controller ids" $(each id | sort -u | wc -l) $FUNCTIONS
  is "subsystems" $(each subsystem | sort -u | wc -l) 1
}
id() { attribute $(controller $1) cntlid; }
subsystem() { attribute $(controller $1) subsysnqn; }
check "every function is driven, each with an id of its own" present

device() { c=$(controller $1); echo /dev/$(ls /sys/class/nvme/$c | grep '^nvme.*n[0-9]*$' | head -n 1 | sed 's/c[0-9]*n/n/'); }
# together ARGUMENTS...: one fio, a job for each function.
together() {
  set -- fio --direct=1 --thread --verify_fatal=1 --output-format=json --output=$T/many.json --ioengine=io_uring --iodepth=8 --bsrange=4k-32k --size=1M \
    "$@"
  # Another seed for each: a block of one function is wrong on another.
  n=0
  for f in $all; do n=$((n + 1)); set -- "$@" --name=function$n --filename=$(device $f) --verify_pattern=0x$(printf %08x $n) --randseed=$n; done
  "$@"
  is "jobs without an error" $(grep -c '"error" : 0,' $T/many.json) $FUNCTIONS
}
check "all write and verify at once" together --verify=pattern --rw=randwrite

shaken() {
  each reset
  each wait_for alive
  together --verify=pattern --rw=randread
}
reset() { echo 1 >/sys/class/nvme/$(controller $1)/reset_controller; }
check "all are reset, and each still holds its own data" shaken

# One works while all the others are reset.
neighbours() {
  d=$(device $(echo $all | cut -d ' ' -f 1))
  load_start $d
  for f in $(echo $all | cut -d ' ' -f 2-); do reset $f; done
  load_moves $d
  each wait_for alive
  load_stop
}
check "resets of its neighbours cost a function no I/O" neighbours

finish
