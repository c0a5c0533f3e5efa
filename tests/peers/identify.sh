# SPDX-License-Identifier: Apache-2.0 OR MIT
# nvme-cli and the kernel agree on who the controller is and what it holds.

function=$(io_functions | nth 1)
c=$(controller $function)
plan 9

queues() {
  is_live $c
  # Its own count holds the administrative queue.
  is "queue_count" $(attribute $c queue_count) $(($(nproc) + 1))
}
check "the stock driver gets a queue for every processor" queues

controller_fields() {
  nvme id-ctrl /dev/$c -o json >$T/ctrl.json
  is serial "$(json sn $T/ctrl.json | sed 's/ *$//')" $SERIAL
  is model "$(json mn $T/ctrl.json | sed 's/ *$//')" "$(attribute $c model | sed 's/ *$//')"
  is firmware "$(json fr $T/ctrl.json | sed 's/ *$//')" "$(attribute $c firmware_rev | sed 's/ *$//')"
  is cntlid $(json cntlid $T/ctrl.json) $(attribute $c cntlid)
  is subnqn $(json subnqn $T/ctrl.json) $(attribute $c subsysnqn)
  is cntrltype $(json cntrltype $T/ctrl.json) 1
  is sqes $(json sqes $T/ctrl.json) $((0x66))
  is cqes $(json cqes $T/ctrl.json) $((0x44))
  # Compare, Dataset Management, Write Zeroes.
  is "ONCS" $(($(json oncs $T/ctrl.json) & 0xd)) $((0xd))
  at_least nn $(json nn $T/ctrl.json) 1
}
check "id-ctrl says what the kernel says" controller_fields

# The figure's offsets, not nvme-cli's structure.
controller_bytes() {
  nvme id-ctrl /dev/$c -b >$T/ctrl.bin
  is length $(wc -c <$T/ctrl.bin) 4096
  is vid $(number $T/ctrl.bin 0 2) $(($(cat /sys/bus/pci/devices/$function/vendor)))
  is serial "$(ascii $T/ctrl.bin 4 20)" $SERIAL
  is cntlid $(number $T/ctrl.bin 78 2) $(attribute $c cntlid)
  is version $(number $T/ctrl.bin 80 4) $(json ver $T/ctrl.json)
  is cntrltype $(number $T/ctrl.bin 111 1) 1
  is subnqn "$(ascii $T/ctrl.bin 768 256 | tr -d '\0')" $(attribute $c subsysnqn)
}
check "id-ctrl in raw bytes" controller_bytes

list() {
  nvme list-ns /dev/$c -o json >$T/list.json
  got=$(sed -n 's/.*"nsid":\([0-9]*\).*/\1/p' $T/list.json | tr '\n' ' ')
  is namespaces "$got" "$(for n in /sys/class/nvme/$c/nvme*n*; do cat $n/nsid; done | sort -n | tr '\n' ' ')"
  at_least "their number" $(echo $got | wc -w) 1
}
check "list-ns names what the kernel found" list

sizes() {
  for path in /sys/class/nvme/$c/nvme*n*; do
    nsid=$(cat $path/nsid)
    device=$(block $c $nsid)
    nvme id-ns /dev/$c -n $nsid -b >$T/ns.bin
    is length $(wc -c <$T/ns.bin) 4096
    format=$(($(number $T/ns.bin 26 1) & 15))
    shift_=$(number $T/ns.bin $((128 + 4 * format + 2)) 1)
    is "block size of $nsid" $((1 << shift_)) $(blockdev --getss $device)
    is "size of $nsid" $(($(number $T/ns.bin 0 8) << shift_)) $(blockdev --getsize64 $device)
    at_least "capacity of $nsid" $(number $T/ns.bin 0 8) $(number $T/ns.bin 8 8)
  done
}
check "id-ns and the block layer agree on sizes" sizes

names() {
  all=
  for path in /sys/class/nvme/$c/nvme*n*; do
    nsid=$(cat $path/nsid)
    nvme id-ns /dev/$c -n $nsid -b >$T/ns.bin
    nguid=$(bytes $T/ns.bin 104 16)
    differ "NGUID of $nsid" $nguid 00000000000000000000000000000000
    nvme ns-descs /dev/$c -n $nsid -o json >$T/descs.json
    is "NGUID in the descriptor list" $(json nguid $T/descs.json | tr -d -) $nguid
    all="$all $nguid"
  done
  is "namespaces of the same name" "$(echo $all | tr ' ' '\n' | sort | uniq -d)" ""
}
check "every namespace has a name of its own, the same wherever it is asked" names

attached() {
  nvme list-ctrl /dev/$c -o json >$T/list-ctrl.json
  grep -o '"ctrl_id":[0-9]*' $T/list-ctrl.json | grep -qx "\"ctrl_id\":$(attribute $c cntlid)" || { cat $T/list-ctrl.json; false; }
}
check "list-ctrl has this controller" attached

nothing_there() {
  refused b nvme id-ns /dev/$c -n 0xfffffff0
  nvme id-ns /dev/$c -n $(json nn $T/ctrl.json) -b >$T/ns.bin
  refused 2 nvme admin-passthru /dev/$c --opcode=6 --cdw10=0xff --data-len=4096 -r
}
check "namespaces and structures that are not there are refused" nothing_there

interrupts() { awk -v q="${c}q$1\$" '$0 ~ q { for (i = 2; i <= 3; i++) n += $i } END { print n + 0 }' /proc/interrupts; }
by_interrupt() {
  device=$(block $c 1)
  for context in $(path_of $c 1)/mq/*; do
    cpu=$(sed 's/[,-].*//' $context/cpu_list) q=$(($(basename $context) + 1))
    before=$(interrupts $q)
    taskset $(printf %x $((1 << cpu))) dd if=$device of=/dev/null bs=4k count=8 iflag=direct
    at_least "interrupts of queue $q" $(interrupts $q) $((before + 1))
  done
}
check "each queue interrupts its processor" by_interrupt

finish
