# SPDX-License-Identifier: Apache-2.0 OR MIT
# nvme-cli's lm commands: the administrative controller tracks, suspends, reads and resumes an I/O controller.
#
# nvme-cli 2.13: migration-recv exits with 0 whatever the card says, asks for one dword more than it writes, and
# track-send knows only user data; memory tracking goes by passthrough.

admin=$(admin_functions | nth 1) function=$(io_functions | nth 1) other=$(io_functions | nth 2)
echo "5a53 0001" >/sys/bus/pci/drivers/nvme/new_id
is_live_at() { c=$(controller $admin); [ -n "$c" ] && is_live $c; }
wait_for is_live_at
c=$(controller $admin)
target=$(attribute $(controller $function) cntlid) mine=$(attribute $c cntlid)
d=$(block $(controller $function) 1)
plan 10

send() { nvme lm migration-send /dev/$c "$@"; }
suspend() { send -s 0 -t 1 -c $target; }
resume() { send -s 1 -c $target; }
# state DWORDS: into $T/state, and what nvme-cli says of it into $T/state.said.
state() { rm -f $T/state; nvme lm migration-recv /dev/$c -s 0 -c $target -V 1 -n $1 -f $T/state >$T/state.said 2>&1; }
size_of_state() { state 12 && echo $((48 + 4 * ($(number $T/state 16 4) + $(number $T/state 32 4)))); }

formats() {
  nvme admin-passthru /dev/$c --opcode=6 --cdw10=0x20 --data-len=4096 -r -b >$T/formats
  at_least "state formats" $(number $T/formats 0 1) 1
  is "the first of them" $(number $T/formats 2 2) 0
}
check "the standard state format is offered" formats

queues() {
  refused 1 nvme lm create-cdq /dev/$c -s 64 -c $target -q 0 --consent
  refused 1 nvme lm delete-cdq /dev/$c -C 1
  refused 2 nvme lm set-cdq /dev/$c -C 1 -H 0
  refused 2 nvme lm get-cdq /dev/$c -C 1
  refused 137 nvme lm track-send /dev/$c -s 0 --start -C 1
}
check "user data migration queues are refused, each way with its own status" queues

running() {
  refused 13a send -s 1 -c $target
  refused 11f send -s 0 -t 1 -c 0xfff0
  refused 11f send -s 0 -t 1 -c $mine
  state 12
  grep -q 'NOT Suspended' $T/state.said || { cat $T/state.said; false; }
  is "CSATTR" $(($(number $T/state 2 1) & 1)) 0
}
check "a running controller is not resumed, no other is suspended" running

suspended() {
  suspend
  # A second time is no error.
  suspend
  size=$(size_of_state)
  state $((size / 4))
  grep -q 'Controller Suspended' $T/state.said || { cat $T/state.said; false; }
  is "CSATTR" $(($(number $T/state 2 1) & 1)) 1
  is "submission queues" $(number $T/state $((48 + 2)) 2) $(nproc)
  is "completion queues" $(number $T/state $((48 + 4)) 2) $(nproc)
  # Queue entries of 24 bytes: address, size, identifier, for a submission queue its completion queue.
  is "first submission queue" $(number $T/state $((48 + 8 + 10)) 2) 1
  is "its completion queue" $(number $T/state $((48 + 8 + 12)) 2) 1
  is "first completion queue" $(number $T/state $((48 + 8 + 24 * $(nproc) + 10)) 2) 1
  cp $T/state $T/first
  state $((size / 4))
  cmp $T/state $T/first
  resume
}
check "the state of a suspended controller: its queues, twice the same" suspended

chunks() {
  suspend
  size=$(size_of_state)
  state $((size / 4)); cp $T/state $T/whole
  nvme lm migration-recv /dev/$c -s 0 -c $target -V 1 -n 12 -o 48 --output-format=binary -f $T/part
  is "48 bytes from 48" $(bytes $T/part 0 48) $(bytes $T/whole 48 48)
  resume
}
check "the state can be read from an offset" chunks

quiet() {
  load_start $d
  for _ in 1 2 3; do
    suspend
    before=$(completed $d)
    state 12
    is "I/O completed while suspended" $(($(completed $d) - before)) 0
    resume
    load_moves $d
  done
  load_stop
}
check "no I/O while suspended, none lost" quiet

# Set State into a controller that has queues, and chunks out of order.
misuse() {
  suspend
  size=$(size_of_state); state $((size / 4))
  refused 2 send -s 2 -S 3 -c $target -V 1 -n $((size / 4)) -f $T/state
  resume
  refused 11f send -s 2 -S 3 -c $target -V 1 -n $((size / 4)) -f $T/state
  refused 2 nvme admin-passthru /dev/$c --opcode=0x41 --cdw10=0xff --cdw11=$target
}
check "state is not set where it must not be" misuse

# track START|STOP: all memory below 4 GiB in pages of 4 KiB: version 0, granule 2^0, one descriptor.
track() {
  printf '\0\0\0\0\001\0\0\0\0\0\0\0\0\0\0\0\0\0\020\0' >$T/ranges
  nvme admin-passthru /dev/$c --opcode=0x3d --cdw10=$((1 | $1 << 16)) --cdw11=$target --data-len=20 -w -i $T/ranges
}
# report: how many pages; descriptors of 16 bytes follow 16 bytes of header.
report() {
  nvme admin-passthru /dev/$c --opcode=0x3e --cdw10=0 --cdw11=$target --cdw12=1023 --data-len=4096 -r -b >$T/report
  entries=$(number $T/report 4 4) pages=0
  i=0; while [ $i -lt $entries ]; do pages=$((pages + $(number $T/report $((16 + 16 * i + 8)) 4))); i=$((i + 1)); done
  echo $pages
}
tracked() {
  refused 11f nvme admin-passthru /dev/$c --opcode=0x3e --cdw10=0 --cdw11=$target --cdw12=1023 --data-len=4096 -r
  track 1
  refused 11f track 1
  report >/dev/null
  is "pages without I/O" $(report) 0
  # 256 KiB into memory are 64 pages, or 65 when they begin inside one; and completion entries.
  dd if=$d of=/dev/null bs=128k count=2 iflag=direct
  dirty=$(report)
  at_least "pages of a read" $dirty 64
  at_least "128 less pages of a read" $((128 - dirty)) 0
  # A write moves data out of memory: only completion entries come in.
  dd if=/dev/zero of=$d bs=128k count=2 oflag=direct
  dirty=$(report)
  at_least "pages of a write" $dirty 1
  at_least "16 less pages of a write" $((16 - dirty)) 0
  track 0
}
check "memory tracking sees what a read brought, page for page" tracked

# The other function, without a driver, gets the state and gives it back.
moved() {
  two=$(attribute $(controller $other) cntlid)
  echo $other >/sys/bus/pci/drivers/nvme/unbind
  suspend
  size=$(size_of_state); state $((size / 4)); cp $T/state $T/source
  send -s 0 -t 1 -c $two
  send -s 2 -S 3 -c $two -V 1 -n $((size / 4)) -f $T/source
  nvme lm migration-recv /dev/$c -s 0 -c $two -V 1 -n $((size / 4)) -f $T/copy
  # Header and queues.
  is "state of the other" $(bytes $T/copy 0 $((48 + 8 + 48 * $(nproc)))) $(bytes $T/source 0 $((48 + 8 + 48 * $(nproc))))
  # It must not run with queues in the first one's memory: a reset ends its suspension.
  echo 1 >/sys/bus/pci/devices/$other/reset
  resume
  echo $other >/sys/bus/pci/drivers/nvme/bind
  wait_for ready $other 3
}
check "a state moves to another controller" moved

# A reset of the managing controller ends what it asked for.
ended() {
  suspend
  nvme reset /dev/$c; wait_for is_live $c
  refused 13a send -s 1 -c $target
  dd if=$d of=/dev/null bs=64k count=4 iflag=direct
}
check "a reset of the managing controller ends its suspensions" ended

finish
