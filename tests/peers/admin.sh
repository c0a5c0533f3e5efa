# SPDX-License-Identifier: Apache-2.0 OR MIT
# The administrative controller under Linux's nvme driver, which has to be told of it: its class is not the driver's.

function=$(admin_functions | nth 1)
plan 6

driver_of() { basename $(readlink /sys/bus/pci/devices/$1/driver 2>/dev/null || echo none); }
bound() {
  is "driver before" $(driver_of $function) none
  echo "5a53 0001" >/sys/bus/pci/drivers/nvme/new_id
  wait_for is_live_at
  c=$(controller $function)
  is "controller type in sysfs" $(attribute $c cntrltype) admin
  is "namespaces" "$(ls /sys/class/nvme/$c | grep -c '^nvme.*n[0-9]')" 0
}
is_live_at() { c=$(controller $function); [ -n "$c" ] && is_live $c; }
check "the stock driver takes it by new_id" bound
c=$(controller $function)

fields() {
  nvme id-ctrl /dev/$c -b >$T/admin.bin
  is cntrltype $(number $T/admin.bin 111 1) 3
  is serial "$(ascii $T/admin.bin 4 20)" $SERIAL
  is "OACS.HMLMS" $(($(number $T/admin.bin 256 2) >> 11 & 1)) 1
  is "TRATTR.THMCS" $(($(number $T/admin.bin 576 1) & 1)) 1
  at_least CMMRTD $(number $T/admin.bin 570 2) 1
  at_least "NMMRTD less CMMRTD" $(($(number $T/admin.bin 572 2) - $(number $T/admin.bin 570 2))) 0
  at_least "MAXMRTG less MINMRTG" $(($(number $T/admin.bin 575 1) - $(number $T/admin.bin 574 1))) 0
  is subnqn "$(ascii $T/admin.bin 768 256 | tr -d '\0')" $(attribute $(controller $(io_functions | nth 1)) subsysnqn)
}
check "id-ctrl: it migrates and tracks, for the subsystem of the I/O controllers" fields

members() {
  nvme list-ctrl /dev/$c -o json >$T/list.json
  is controllers "$(grep -o '"ctrl_id":[0-9]*' $T/list.json | sed 's/.*://' | sort -n | tr '\n' ' ')" \
    "$(for f in $function $(io_functions); do attribute $(controller $f) cntlid; done | sort -n | tr '\n' ' ')"
}
check "list-ctrl names every function of the card" members

no_io() {
  refused 1 nvme admin-passthru /dev/$c --opcode=0x01 --cdw10=0x10001 --cdw11=1
  nvme smart-log /dev/$c -b >$T/smart.bin
  is "critical warnings" $(number $T/smart.bin 0 1) 0
}
check "it has no I/O queues" no_io

same() { nvme id-ctrl /dev/$c -b >$T/again.bin; cmp $T/admin.bin $T/again.bin; }
resets() {
  for _ in 1 2 3; do nvme reset /dev/$c; wait_for is_live $c; same; done
  echo 1 >/sys/bus/pci/devices/$function/reset
  wait_for is_live $c
  same
}
check "nvme reset and a function level reset leave it as it was" resets

let_go() {
  echo $function >/sys/bus/pci/drivers/nvme/unbind
  echo "5a53 0001" >/sys/bus/pci/drivers/nvme/remove_id
  echo $function >/sys/bus/pci/drivers/nvme/bind 2>/dev/null || true
  is "driver behind it" $(driver_of $function) none
  # The others are as alive as before.
  for f in $(io_functions); do is_live $(controller $f); done
}
check "the driver lets it go" let_go

finish
