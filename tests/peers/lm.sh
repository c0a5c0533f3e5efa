# SPDX-License-Identifier: Apache-2.0 OR MIT
# nvme-cli's lm commands: the administrative controller tracks, suspends, reads and resumes an I/O controller.
#
# nvme-cli 2.13: migration-recv exits with 0 whatever the card says and asks for one dword more than it writes.
# migration-send forgets the version index of a state and dies of its input file; track-send knows user data only:
# Set Controller State and memory tracking go by passthrough.

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
# put CNTLID FILE INDICES: Set Controller State, whole; 0x0001 is the standard part, 0x0101 all of it.
put() {
  set -- $1 $2 $3 $(wc -c <$2)
  nvme admin-passthru /dev/$c --opcode=0x41 --cdw10=$((2 | 3 << 16)) --cdw11=$(($1 | $3 << 16)) --cdw15=$(($4 / 4)) --data-len=$4 -w -i $2
}
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
# drain: reports until there is no more of it; the last is the whole truth of a suspended controller.
more() { [ $(($(number $T/report 1 1) & 1)) = 1 ]; }
drain() { report >/dev/null; while more; do report >/dev/null; done; }
# Whatever is done is counted: interrupts may still be on their way when the card has answered.
still() { seen=$(completed $d); usleep 200000; [ $(completed $d) = $seen ]; }
reading() { awk '{ print $1 }' /sys/block/$(basename $d)/inflight; }
more_reading() { [ $(reading) -gt $reads ]; }
quiet() {
  track 1
  load_start $d
  for _ in 1 2 3; do
    suspend
    drain
    wait_for still
    before=$(completed $d)
    is "ATTRB of the report" $(number $T/report 1 1) 2
    # One more read, which has to wait until the resume.
    reads=$(reading)
    dd if=$d of=/dev/null bs=128k count=1 iflag=direct &
    reader=$!
    wait_for more_reading
    state 12
    is "I/O completed while suspended" $(($(completed $d) - before)) 0
    is "pages written while suspended" $(report) 0
    resume
    wait $reader
    load_moves $d
  done
  load_stop
  track 0
}
check "no I/O and no write to memory while suspended, none lost" quiet

misuse() {
  suspend
  size=$(size_of_state); state $((size / 4))
  # It has queues.
  refused 2 put $target $T/state 1
  refused 2 put $target $T/state 0
  resume
  refused 13a put $target $T/state 1
  refused 2 nvme admin-passthru /dev/$c --opcode=0x41 --cdw10=0xff --cdw11=$target
}
check "state is not set where it must not be" misuse

tracked() {
  refused 11f nvme admin-passthru /dev/$c --opcode=0x3e --cdw10=0 --cdw11=$target --cdw12=1023 --data-len=4096 -r
  track 1
  refused 11f track 1
  report >/dev/null
  is "pages without I/O" $(report) 0
  # dd reads both times into the same 32 pages, or 33 when they begin inside one; and there are completion entries.
  dd if=$d of=/dev/null bs=128k count=2 iflag=direct
  dirty=$(report)
  at_least "pages of a read" $dirty 33
  at_least "40 less pages of a read" $((40 - dirty)) 0
  # A write moves data out of memory: only completion entries come in.
  dd if=/dev/zero of=$d bs=128k count=2 oflag=direct
  dirty=$(report)
  at_least "pages of a write" $dirty 1
  at_least "16 less pages of a write" $((16 - dirty)) 0
  track 0
}
check "memory tracking sees what a read brought, page for page" tracked

# everything CNTLID FILE: the standard part and the card's own. What was taken at offset 0 belongs together.
everything() {
  nvme lm migration-recv /dev/$c -s 0 -c $1 -V 1 -U 1 -n 12 -f $2
  nvme lm migration-recv /dev/$c -s 0 -c $1 -V 1 -U 1 -n $((12 + $(number $2 16 4) + $(number $2 32 4))) -f $2
}
# All of a state goes back into its function after a reset, and is the same when it is read again. The function
# stays suspended in between: its queues are not there any more.
restored() {
  own=$(attribute $(controller $other) cntlid)
  send -s 0 -t 1 -c $own
  everything $own $T/all
  is "I/O queues" $(number $T/all 50 2) $(nproc)
  send -s 1 -c $own
  echo $other >/sys/bus/pci/drivers/nvme/unbind
  echo 1 >/sys/bus/pci/devices/$other/reset
  refused 11f put $own $T/all 0x101
  send -s 0 -t 1 -c $own
  # A state of another function, with other namespaces.
  suspend
  everything $target $T/foreign
  resume
  refused 2 put $own $T/foreign 0x101
  put $own $T/all 0x101
  everything $own $T/again
  cmp $T/all $T/again
  echo 1 >/sys/bus/pci/devices/$other/reset
  echo $other >/sys/bus/pci/drivers/nvme/bind
  wait_for ready $other 3
}
check "a state goes back whole, and no other does" restored

# A reset of the managing controller ends what it asked for.
ended() {
  suspend
  nvme reset /dev/$c; wait_for is_live $c
  refused 13a send -s 1 -c $target
  dd if=$d of=/dev/null bs=64k count=4 iflag=direct
}
check "a reset of the managing controller ends its suspensions" ended

finish
