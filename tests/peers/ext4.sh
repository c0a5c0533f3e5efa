# SPDX-License-Identifier: Apache-2.0 OR MIT
# ext4 on the card: made, filled, trimmed, checked, mounted again. Nothing is executed from it.

c=$(controller $(io_functions | nth 1))
d=$(block $c 2)
m=/tmp/mnt; mkdir -p $m
plan 7

make() { mkfs.ext4 -q -F -E lazy_itable_init=0,lazy_journal_init=0 $d 16M; mount -t ext4 -o discard $d $m; }
check "mkfs.ext4 and mount" make

# A program of this image, as data, and many small files.
fill() {
  cp /usr/bin/fio $m/one
  mkdir $m/many
  drive --directory=$m/many --ioengine=psync --direct=0 --rw=write --bs=4k --nrfiles=300 --filesize=1k-20k --size=3M --openfiles=8 --verify=crc32c
  sync
  (cd $m && find . -type f | sort | xargs md5sum) >$T/sums
  at_least files $(wc -l <$T/sums) 301
}
check "files are written" fill

reread() { echo 3 >/proc/sys/vm/drop_caches; (cd $m && md5sum -c $T/sums >$T/checked); is "files that changed" $(grep -vc ': OK$' $T/checked) 0; }
check "the medium, not the cache, has them" reread

deleted() {
  rm $m/many/*[02468]; sync
  grep -v '/many/.*[02468]$' $T/sums >$T/left; mv $T/left $T/sums
  is "files left" $(wc -l <$T/sums) 151
  fstrim $m
  reread
}
check "deleted files are trimmed, the others stay" deleted

synced() {
  drive --directory=$m --ioengine=psync --direct=0 --rw=randwrite --bs=4k --size=1M --fsync=16 --verify=crc32c
  rm -f $m/v.*
}
check "fsync" synced

clean() { umount $m; e2fsck -f -n $d; }
check "e2fsck finds nothing" clean

again() { mount -t ext4 $d $m; reread; umount $m; e2fsck -f -n $d; }
check "mounted again, all is there" again

umount $m 2>/dev/null
finish
