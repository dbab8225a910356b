package process

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/prov4ml/agent/bpf"
)

// volume is a file system of its own, on devices of its own: what the rest of the machine does is not on them.
type volume struct {
	name    string
	dir     string
	devices []string // the file system's: /dev/loopN
	below   []string // what those are made of, for a stack
	copies  uint64   // how often each byte written is written below
	// overcounted: the device's own count is too high. The device mapper of 5.10 adds to it what is written with a flush twice, when it
	// is asked for and when the flush is done; its RAID 0 adds the rest of a bio that it splits once more.
	overcounted bool
	// untold: the RAID 0 of 5.10 passes on the very bio that it was given, of which the kernel tells once.
	untold bool
	// uncounted: brd keeps no count of sectors, of which /sys/block/ram0/stat says 0.
	uncounted bool
}

// is says whether the file system is of a kind: the last word of the volume's name.
func (v *volume) is(kind string) bool {
	return v.name[strings.LastIndex(v.name, " ")+1:] == kind
}

const (
	mkfsExt4  = "mkfs.ext4 -q -E lazy_itable_init=0,lazy_journal_init=0"
	mkfsXFS   = "mkfs.xfs -q -f"
	mkfsBtrfs = "mkfs.btrfs -q -f"
)

const volumeBytes = 512 << 20

// newVolume makes one on loop devices.
func newVolume(t *testing.T, name, image string, count int, mkfs string) *volume {
	t.Helper()
	v := &volume{name: name, devices: newLoops(t, image, count)}
	v.mount(t, mkfs)
	return v
}

func newLoops(t *testing.T, image string, count int) (devices []string) {
	t.Helper()
	for i := range count {
		file := image + strconv.Itoa(i)
		if err := os.WriteFile(file, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Truncate(file, volumeBytes); err != nil {
			t.Fatal(err)
		}
		device := strings.TrimSpace(run(t, "losetup", "--find", "--show", file))
		devices = append(devices, device)
		t.Cleanup(func() { run(t, "losetup", "--detach", device) })
	}
	return devices
}

func (v *volume) mount(t *testing.T, mkfs string) {
	t.Helper()
	v.dir = filepath.Join(t.TempDir(), "mnt")
	command := append(strings.Fields(mkfs), v.devices...)
	run(t, command[0], command[1:]...)
	if err := os.Mkdir(v.dir, 0o700); err != nil {
		t.Fatal(err)
	}
	run(t, "mount", v.devices[0], v.dir)
	t.Cleanup(func() { run(t, "umount", v.dir) })
}

// needs skips where the kernel has no such device.
func needs(t *testing.T, path string) {
	t.Helper()
	if _, err := os.Stat(path); err != nil {
		t.Skip("this kernel has no RAM disks, device mapper or md: see make test-kernels")
	}
}

const sectorBytes = 512

// mapped makes a device of the device mapper from a table over loop devices.
func mapped(t *testing.T, name string, below []string, table string) *volume {
	t.Helper()
	name = "prov4ml-" + name
	dmsetup := func(arguments ...string) string {
		return run(t, "dmsetup", append(arguments, "--noudevsync", "--noudevrules")...)
	}
	dmsetup("create", name, "--table", table)
	t.Cleanup(func() { dmsetup("remove", "--retry", name) })
	device := "/dev/" + strings.TrimSpace(run(t, "dmsetup", "info", "-c", "--noheadings", "-o", "blkdevname", name))
	return &volume{devices: []string{device}, below: below, copies: 1, overcounted: kernelBefore(t, 6, 1)}
}

func newLinear(t *testing.T) *volume {
	needs(t, "/dev/mapper/control")
	below := newLoops(t, filepath.Join(t.TempDir(), "image"), 2)
	// In turns, so that both are written and a bio may lie on both.
	var table strings.Builder
	const piece = 4 << 20 / sectorBytes
	for i := range volumeBytes / sectorBytes / piece {
		fmt.Fprintf(&table, "%d %d linear %s %d\n", i*piece, piece, below[i%2], i/2*piece)
	}
	return mapped(t, "linear", below, table.String())
}

func newStriped(t *testing.T) *volume {
	needs(t, "/dev/mapper/control")
	below := newLoops(t, filepath.Join(t.TempDir(), "image"), 2)
	return mapped(t, "striped", below, fmt.Sprintf("0 %d striped 2 %d %s 0 %s 0",
		2*volumeBytes/sectorBytes, 64<<10/sectorBytes, below[0], below[1]))
}

// newCrypt makes a device whose writes are handed on by a worker.
func newCrypt(t *testing.T) *volume {
	needs(t, "/dev/mapper/control")
	below := newLoops(t, filepath.Join(t.TempDir(), "image"), 1)
	return mapped(t, "crypt", below, fmt.Sprintf("0 %d crypt cipher_null-ecb - 0 %s 0 1 allow_discards", volumeBytes/sectorBytes, below[0]))
}

// newRAID makes an array of md without superblocks, of two loop devices.
func newRAID(level int, copies uint64) func(*testing.T) *volume {
	return func(t *testing.T) *volume {
		const newArray = "/sys/module/md_mod/parameters/new_array"
		needs(t, newArray)
		below := newLoops(t, filepath.Join(t.TempDir(), "image"), 2)
		name := "md" + strconv.Itoa(100+level)
		if err := os.WriteFile(newArray, []byte(name), 0); err != nil {
			t.Fatal(err)
		}
		device := "/dev/" + name
		// include/uapi/linux/raid/md_u.h
		const setArrayInfo, addNewDisk, runArray, stopArray = 0x40480923, 0x40140921, 0x400c0930, 0x932
		const clean, active, inSync = 1 << 0, 1 << 1, 1 << 2
		control := func(request, argument uintptr) {
			t.Helper()
			f, err := os.OpenFile(device, os.O_RDWR, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			if _, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), request, argument); errno != 0 {
				t.Fatalf("ioctl %#x of %s: %v", request, device, errno)
			}
		}
		info := struct {
			major, minor, patch, ctime, level, size, disks, raidDisks, deviceMinor, notPersistent int32
			utime, state, active, working, failed, spare, layout, chunkBytes                      int32
		}{
			minor: 90, level: int32(level), size: volumeBytes >> 10, disks: 2, raidDisks: 2, deviceMinor: int32(100 + level),
			notPersistent: 1, state: clean, active: 2, working: 2, chunkBytes: 64 << 10,
		}
		control(setArrayInfo, uintptr(unsafe.Pointer(&info)))
		for i, one := range below {
			var stat unix.Stat_t
			if err := unix.Stat(one, &stat); err != nil {
				t.Fatal(err)
			}
			disk := struct{ number, major, minor, raidDisk, state int32 }{
				int32(i), int32(unix.Major(stat.Rdev)), int32(unix.Minor(stat.Rdev)), int32(i), active | inSync,
			}
			control(addNewDisk, uintptr(unsafe.Pointer(&disk)))
		}
		control(runArray, 0)
		t.Cleanup(func() { control(stopArray, 0) })
		old := level == 0 && kernelBefore(t, 6, 1)
		return &volume{devices: []string{device}, below: below, copies: copies, overcounted: old, untold: old}
	}
}

func newRAMDisk(t *testing.T) *volume {
	const device = "/dev/ram0"
	needs(t, device)
	return &volume{devices: []string{device}, uncounted: true}
}

func run(t *testing.T, command string, arguments ...string) string {
	t.Helper()
	out, err := exec.Command(command, arguments...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v: %s", command, strings.Join(arguments, " "), err, out)
	}
	return string(out)
}

func (v *volume) sync(t *testing.T) {
	t.Helper()
	if err := (step{Do: "sync-fs", Path: v.dir}).Act(); err != nil {
		t.Fatal(err)
	}
}

// flow is what a device took and gave, by class and in all.
type flow struct {
	write, read         [7]uint64
	statWrite, statRead uint64
}

func (f *flow) add(one flow) {
	for class := range one.write {
		f.write[class] += one.write[class]
		f.read[class] += one.read[class]
	}
	f.statWrite += one.statWrite
	f.statRead += one.statRead
}

func (f *flow) subtract(one flow) {
	for class := range one.write {
		f.write[class] -= one.write[class]
		f.read[class] -= one.read[class]
	}
	f.statWrite -= one.statWrite
	f.statRead -= one.statRead
}

func (f flow) conserved() bool {
	return sum(f.write) == f.statWrite && sum(f.read) == f.statRead
}

func sum(parts [7]uint64) (all uint64) {
	for _, part := range parts {
		all += part
	}
	return all
}

// flows are the sum of a volume's devices, the sum of those below, and each.
type flows struct {
	flow
	below flow
	each  []flow
}

func (v *volume) flows(t *testing.T, k *kernel) flows {
	t.Helper()
	var all flows
	for _, device := range v.devices {
		f := flowOf(t, k, device)
		all.add(f)
		all.each = append(all.each, f)
	}
	for _, device := range v.below {
		f := flowOf(t, k, device)
		all.below.add(f)
		all.each = append(all.each, f)
	}
	return all
}

func flowOf(t *testing.T, k *kernel, device string) (f flow) {
	t.Helper()
	var stat unix.Stat_t
	if err := unix.Stat(device, &stat); err != nil {
		t.Fatal(err)
	}
	d, err := k.device(unix.Major(stat.Rdev), unix.Minor(stat.Rdev))
	if err != nil {
		t.Fatal(err)
	}
	copy(f.write[:], d.WriteBytes[:])
	copy(f.read[:], d.ReadBytes[:])
	text, err := os.ReadFile("/sys/block/" + filepath.Base(device) + "/stat")
	if err != nil {
		t.Fatal(err)
	}
	fields := strings.Fields(string(text))
	sectors := func(i int) uint64 {
		n, err := strconv.ParseUint(fields[i], 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		return n * sectorBytes
	}
	f.statRead, f.statWrite = sectors(2), sectors(6)
	return f
}

func (f flows) since(before flows) flows {
	f.subtract(before.flow)
	f.below.subtract(before.below)
	each := make([]flow, len(f.each))
	for i := range each {
		each[i] = f.each[i]
		each[i].subtract(before.each[i])
	}
	f.each = each
	return f
}

// conserved says that the classes of each device add up to what it says itself.
func (v *volume) conserved(t *testing.T, k *kernel, before flows) {
	t.Helper()
	for _, what := range v.unconserved(t, k, before) {
		t.Error(what)
	}
}

func (v *volume) unconserved(t *testing.T, k *kernel, before flows) (wrong []string) {
	t.Helper()
	names := append(v.devices[:len(v.devices):len(v.devices)], v.below...)
	// The classes know a bio from its submission, the device from its completion.
	for range 200 {
		f := v.flows(t, k).since(before)
		wrong = nil
		for i, device := range names {
			one, below := f.each[i], i >= len(v.devices)
			switch {
			case one.conserved():
			case v.uncounted && one.statWrite == 0 && one.statRead == 0:
			case v.overcounted && !below && sum(one.write) < one.statWrite && sum(one.read) == one.statRead:
			case v.untold && below && sum(one.write) == 0 && sum(one.read) == 0:
			default:
				wrong = append(wrong, fmt.Sprintf("%s: classes written add up to %d bytes, the device says %d: %v; read to %d, the device says %d: %v",
					device, sum(one.write), one.statWrite, one.write, sum(one.read), one.statRead, one.read))
			}
		}
		if len(wrong) == 0 {
			return nil
		}
		time.Sleep(10 * time.Millisecond)
	}
	return wrong
}

// passedOn says what is wrong with what the devices below were given: all that the volume's own were, and for nobody.
func (v *volume) passedOn(f flows) (wrong []string) {
	if len(v.below) == 0 || v.untold {
		return nil
	}
	if got, want := f.below.write[bpf.BlockWriteClassCLASS_LOWER], v.copies*sum(f.write); got != want {
		wrong = append(wrong, fmt.Sprintf("the devices below were passed %d bytes to write, want %d: %v", got, want, f.below.write))
	}
	if got, want := f.below.read[bpf.BlockWriteClassCLASS_LOWER], sum(f.read); got != want {
		wrong = append(wrong, fmt.Sprintf("the devices below were passed %d bytes to read, want %d: %v", got, want, f.below.read))
	}
	for class := range f.below.write {
		if f.below.write[class]+f.below.read[class] != 0 && class != int(bpf.BlockWriteClassCLASS_LOWER) {
			wrong = append(wrong, fmt.Sprintf("the devices below wrote %v and read %v", f.below.write, f.below.read))
			break
		}
	}
	return wrong
}
