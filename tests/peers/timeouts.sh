# SPDX-License-Identifier: Apache-2.0 OR MIT
# Commands that the card's fault rules hold, lose or spoil, and what the driver makes of them: abort, reset, retry.
#
# The rules wait for reads of certain blocks of namespace 1, which nothing else reads: see the rig's list.

function=$(io_functions | nth 1)
c=$(controller $function)
d=$(block $c 1)
plan 7

# Long enough for a card that this machine does not get to run to stay below.
seconds=10
echo ${seconds}000 >/sys/block/$(basename $d)/queue/io_timeout
dd if=/dev/urandom of=$T/faulty bs=4k count=8 2>/dev/null
dd if=$T/faulty of=$d bs=4k seek=$((FAULTY / 8)) count=8 oflag=direct 2>/dev/null

# get N: the N-th 4 KiB of what was written, each behind a rule of its own; holds N: and that it is right.
get() { dd if=$d of=$T/got bs=4k skip=$((FAULTY / 8 + $1)) count=1 iflag=direct; }
holds() { get $1; dd if=$T/faulty of=$T/want bs=4k skip=$1 count=1; cmp $T/got $T/want; }
# The kernel's words since the last mark.
mark() { marked=$1; echo "peers: $1" >/dev/kmsg; }
says() { dmesg | sed -n "/peers: $marked/,\$p" | grep -q "$1"; }
said() { says "$1" || { dmesg | tail -n 20; fail "the kernel did not say: $1"; }; }
silent() { ! says "$1" || fail "the kernel said: $1"; }

stalled() {
  mark stalled
  holds 0
  said "timeout, aborting"
  said "Abort status: 0x0"
  silent "reset controller"
}
check "a command that is held is aborted, then done again" stalled

dropped() {
  mark dropped
  load_start $d
  holds 1
  said "timeout, reset controller"
  wait_for is_live $c
  load_moves $d
  load_stop
}
check "a command that is lost costs a reset, and no I/O" dropped

retried() { mark retried; holds 2; silent "timeout"; silent "I/O error"; silent "medium error"; }
check "an error that may pass is tried again" retried

final() {
  mark final
  if get 3 2>/dev/null; then fail "the read succeeded"; return; fi
  said "critical medium error, dev $(basename $d), sector $((FAULTY + 24))"
  holds 3
}
check "an error that stays reaches the reader" final

unknown() {
  mark unknown
  holds 4
  said "invalid id\|genctr mismatch"
  said "timeout, reset controller"
  wait_for is_live $c
}
check "a completion of a command that was never sent" unknown

unseen() { mark unseen; holds 5; said "timeout"; wait_for is_live $c; }
check "a completion with the wrong phase" unseen

admin() {
  mark admin
  nvme admin-passthru /dev/$c --opcode=0x0a --cdw10=0xc5 --timeout=${seconds}000 >$T/admin 2>&1 || true
  said "QID 0 timeout, reset controller"
  wait_for is_live $c
  holds 6
  # The rule was for one command only.
  refused 2 nvme admin-passthru /dev/$c --opcode=0x0a --cdw10=0xc5
}
check "an admin command that is held costs a reset" admin

echo 30000 >/sys/block/$(basename $d)/queue/io_timeout
finish
