# SPDX-License-Identifier: Apache-2.0 OR MIT
# A controller that is rescanned, reset, removed and bound anew while fio writes and verifies.
# No reset may cost an I/O; a removal ends the load with an error, and then the medium must be whole.

function=$(io_functions | nth 1)
slot=/sys/bus/pci/devices/$function
plan 10
find() { c=$(controller $function); d=$(block $c 1); }
find

# survives NAME COMMAND...: under load, I/O goes on behind the command, and nothing fails.
survives() {
  load_start $d
  for round in 1 2 3; do
    "$@" || fail "round $round"
    wait_for is_live $c
    load_moves $d
  done
  load_stop
}

rescan() { echo 1 >/sys/class/nvme/$c/rescan_controller; }
check "rescan under load" survives rescan

reset() { echo 1 >/sys/class/nvme/$c/reset_controller; }
check "reset_controller under load" survives reset

cli_reset() { nvme reset /dev/$c; }
check "nvme reset under load" survives cli_reset

flr() { echo flr >$slot/reset_method; echo 1 >$slot/reset; }
check "function level reset under load" survives flr

# Resets on top of each other: each one that comes while another runs may be refused, the last must hold.
storm() {
  load_start $d
  for _ in 1 2 3 4 5 6 7 8; do reset 2>/dev/null || true; rescan 2>/dev/null || true; done
  wait_for is_live $c
  load_moves $d
  load_stop
}
check "resets and rescans without a pause" storm

pattern() { drive --filename=$d --ioengine=io_uring --iodepth=8 --offset=24M --size=2M --bs=32k --verify=crc32c "$@"; }

# disappears COMMAND...: under load; the load must end with an error, not hang.
disappears() { load_start $d; "$@"; wait_for load_gone; differ "fio's error" "$(json error $T/load.json)" 0; }
comes_back() {
  wait_for ready $function 1
  find
  pattern --rw=read
  pattern --rw=write
}

removed() {
  pattern --rw=write
  for _ in 1 2; do
    disappears eval "echo 1 >$slot/remove"
    [ ! -e $slot ]
    echo 1 >/sys/bus/pci/rescan
    comes_back
  done
}
check "removed and rescanned under load, what was written is there" removed
find

rebound() {
  for _ in 1 2; do
    disappears eval "echo $function >/sys/bus/pci/drivers/nvme/unbind"
    is "controllers of it" "$(controller $function)" ""
    echo $function >/sys/bus/pci/drivers/nvme/bind
    comes_back
  done
}
check "unbound and bound under load, what was written is there" rebound
find

# Polled queues beside those with interrupts, and the shortest queues.
polled() {
  reload "" "poll_queues=1 write_queues=1"
  wait_for ready $function 1; find
  dmesg | grep "nvme $c: " | tail -n 5 | grep '/1 default/read/poll queues'
  drive --filename=$d --ioengine=io_uring --hipri --iodepth=16 --rw=randwrite --bsrange=4k-32k --size=4M --verify=crc32c
}
check "polled queues" polled

shallow() {
  reload "" "io_queue_depth=2"
  wait_for ready $function 1; find
  drive --filename=$d --ioengine=io_uring --iodepth=16 --rw=randwrite --bsrange=512-32k --size=1M --verify=crc32c
  # Each entry is used a hundred times over.
  survives reset
}
check "queues of two entries" shallow

# The kernel's log of failed passthrough commands, off and on.
logged() {
  reload "" ""
  wait_for ready $function 1; find
  blocks=$(($(blockdev --getsize64 $d) / $(blockdev --getss $d)))
  echo off >$(path_of $c 1)/passthru_err_log_enabled
  seen=$(dmesg | grep -c 'sct 0x0 / sc 0x80') || true
  refused 80 nvme read $d -s $blocks -c 0 -z 512 -d $T/got
  is "lines while off" "$(dmesg | grep -c 'sct 0x0 / sc 0x80')" $seen
  echo on >$(path_of $c 1)/passthru_err_log_enabled
  refused 80 nvme read $d -s $blocks -c 0 -z 512 -d $T/got
  is "lines while on" "$(dmesg | grep -c 'sct 0x0 / sc 0x80')" $((seen + 1))
  dmesg | grep 'sct 0x0 / sc 0x80' | tail -n 1 | grep "cdw10=0x$(printf %x $blocks)"
}
check "failed passthrough commands are logged with what they asked" logged

finish
