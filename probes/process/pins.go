package process

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/prov4ml/agent/bpf"
)

// A pinned set is what keeps counting without an agent: every map and every link of one state directory's agent, as files of a bpf
// file system, which hold them as an open descriptor does.
//
//	DIR/heartbeats   first made: when the agent was last alive
//	DIR/owner        whose it is; complete is set last
//	DIR/roots        the trees: user space writes and reads it, no program does
//	DIR/maps/NAME    the programs' maps
//	DIR/links/NAME   the attached programs
//
// Who may touch a set: the agent that holds its state directory's lock; anybody once the heartbeat is too old, for the programs have
// stopped counting then.

// DefaultPinDir is where pinned sets lie, one directory each.
const DefaultPinDir = "/sys/fs/bpf/prov4ml"

const (
	// heartbeatLimit is how long the programs count without an agent.
	heartbeatLimit = 10 * time.Minute
	beatEvery      = 5 * time.Second
	// deadAfter is when an agent that should have written its heartbeat is taken to be gone.
	deadAfter = 6 * beatEvery
	// pinVersion changes with the layout of owner and root, or with what a value in any map means.
	pinVersion = 1
)

// owner is the value of the map of that name. No padding: it is written as it lies.
type owner struct {
	Layout [sha256.Size]byte
	// Set tells two sets of the same directory apart.
	Set      uint64
	LastTree uint32
	Complete uint32
	StateDir [256]byte
}

// rootState says how far making or giving up a tree has come.
type rootState uint32

const (
	rootMade rootState = iota
	rootMaking
	rootLeaving
)

// maxNote bounds Probe.Note, in bytes.
const maxNote = 4072

// root is a value of the map roots, by tree.
type root struct {
	StartTicks uint64
	PID        int32
	Parent     uint32
	State      rootState
	NoteBytes  uint32
	Note       [maxNote]byte
}

const (
	ownerFile     = "owner"
	rootsFile     = "roots"
	heartbeatFile = bpf.LineageMapHeartbeats
	mapsDir       = "maps"
	linksDir      = "links"
)

// pinSet is the set of this agent.
type pinSet struct {
	dir string
	// ownerMap and rootsMap are nil until the set is made or taken over.
	ownerMap, rootsMap *ebpf.Map
	value              owner
	limit              time.Duration
}

// namePinSet finds the place of a state directory's set. It fails when there can be none, with the reason.
func namePinSet(pinDir, stateDir string, limit time.Duration) (*pinSet, error) {
	if pinDir == "" {
		pinDir = DefaultPinDir
	}
	if limit == 0 {
		limit = heartbeatLimit
	}
	if err := isBPFFS(pinDir); err != nil {
		return nil, err
	}
	absolute, err := filepath.Abs(stateDir)
	if err != nil {
		return nil, fmt.Errorf("find the state directory: %w", err)
	}
	if resolved, err := filepath.EvalSymlinks(absolute); err == nil {
		absolute = resolved
	}
	sum := sha256.Sum256([]byte(absolute))
	s := &pinSet{dir: filepath.Join(pinDir, hex.EncodeToString(sum[:setNameBytes])), limit: limit}
	s.value.Layout = pinLayout()
	copy(s.value.StateDir[:], absolute)
	return s, nil
}

// CanPin says whether a directory is, or would be, of a bpf file system; empty = DefaultPinDir.
func CanPin(pinDir string) error {
	if pinDir == "" {
		pinDir = DefaultPinDir
	}
	return isBPFFS(pinDir)
}

// setNameBytes of a hash name a set, in hexadecimal digits.
const setNameBytes = 8

func isSetName(name string) bool {
	decoded, err := hex.DecodeString(name)
	return err == nil && len(decoded) == setNameBytes && strings.ToLower(name) == name
}

// errNoBPFFS says that there is no place for pins.
var errNoBPFFS = errors.New("no bpf file system is mounted there")

// isBPFFS says whether dir, or the nearest directory above it that is there, is of a bpf file system.
func isBPFFS(dir string) error {
	at := dir
	for {
		var stat unix.Statfs_t
		err := unix.Statfs(at, &stat)
		if err == nil && stat.Type == unix.BPF_FS_MAGIC {
			return nil
		}
		if err != nil && errors.Is(err, fs.ErrNotExist) && at != filepath.Dir(at) {
			at = filepath.Dir(at)
			continue
		}
		if err != nil {
			return fmt.Errorf("look at %s: %w", at, err)
		}
		return fmt.Errorf("%s: %w", dir, errNoBPFFS)
	}
}

// pinLayout is equal for two agents that can use each other's sets.
func pinLayout() [sha256.Size]byte {
	objects := bpf.Layout()
	return sha256.Sum256(fmt.Appendf(objects[:], "%d %d %d", pinVersion, unsafe.Sizeof(owner{}), unsafe.Sizeof(root{})))
}

// taken is what a set held when it was taken over.
type taken struct {
	maps  map[string]*ebpf.Map
	links map[string]link.Link
}

// take opens the set that an agent before this one has left. An error says why it cannot be used; nil, nil: there is none.
func (s *pinSet) take() (_ *taken, err error) {
	if _, err := os.Stat(s.dir); errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	found, err := readSet(s.dir)
	if err != nil {
		return nil, err
	}
	switch {
	case !found.complete:
		return nil, errors.New("it is incomplete")
	case found.layout != s.value.Layout:
		return nil, errors.New("it is another version's")
	case found.Age > s.limit-s.limit/10:
		return nil, fmt.Errorf("its agent has been gone for %v", found.Age.Round(time.Second))
	}
	t := &taken{maps: map[string]*ebpf.Map{}, links: map[string]link.Link{}}
	defer func() {
		if err != nil {
			t.close()
			s.close()
		}
	}()
	if s.ownerMap, err = ebpf.LoadPinnedMap(filepath.Join(s.dir, ownerFile), nil); err != nil {
		return nil, fmt.Errorf("open its owner: %w", err)
	}
	if err = s.ownerMap.Lookup(uint32(0), &s.value); err != nil {
		return nil, fmt.Errorf("read its owner: %w", err)
	}
	if s.rootsMap, err = ebpf.LoadPinnedMap(filepath.Join(s.dir, rootsFile), nil); err != nil {
		return nil, fmt.Errorf("open its trees: %w", err)
	}
	names, err := namesIn(filepath.Join(s.dir, mapsDir))
	if err != nil {
		return nil, err
	}
	for _, name := range names {
		if t.maps[name], err = ebpf.LoadPinnedMap(filepath.Join(s.dir, mapsDir, name), nil); err != nil {
			return nil, fmt.Errorf("open its map %s: %w", name, err)
		}
	}
	if t.maps[heartbeatFile], err = ebpf.LoadPinnedMap(filepath.Join(s.dir, heartbeatFile), nil); err != nil {
		return nil, fmt.Errorf("open its heartbeat: %w", err)
	}
	if names, err = namesIn(filepath.Join(s.dir, linksDir)); err != nil {
		return nil, err
	}
	for _, name := range names {
		if t.links[name], err = link.LoadPinnedLink(filepath.Join(s.dir, linksDir, name), nil); err != nil {
			return nil, fmt.Errorf("open its link %s: %w", name, err)
		}
	}
	return t, nil
}

func namesIn(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("list a pinned set: %w", err)
	}
	names := make([]string, len(entries))
	for i, e := range entries {
		names[i] = e.Name()
	}
	return names, nil
}

func (t *taken) close() {
	for _, m := range t.maps {
		_ = m.Close()
	}
	for _, l := range t.links {
		if l != nil {
			_ = l.Close()
		}
	}
}

// make pins what l has loaded. The heartbeat must beat already.
func (s *pinSet) make(l *loaded) (err error) {
	if err := removeSet(s.dir); err != nil {
		return err
	}
	for _, dir := range [...]string{s.dir, filepath.Join(s.dir, mapsDir), filepath.Join(s.dir, linksDir)} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return fmt.Errorf("make a directory for pins: %w", err)
		}
	}
	defer func() {
		if err != nil {
			s.close()
			err = errors.Join(err, removeSet(s.dir))
		}
	}()
	if err := l.maps[heartbeatFile].Pin(filepath.Join(s.dir, heartbeatFile)); err != nil {
		return fmt.Errorf("pin the heartbeat: %w", err)
	}
	// Nanoseconds of the boot clock differ between two sets of one directory.
	s.value.Set, s.value.LastTree, s.value.Complete = monotonicNanos(), 0, 0
	s.ownerMap, err = ebpf.NewMap(&ebpf.MapSpec{
		Name: ownerFile, Type: ebpf.Array, KeySize: 4, ValueSize: uint32(unsafe.Sizeof(owner{})), MaxEntries: 1,
	})
	if err != nil {
		return fmt.Errorf("make the map of a set's owner: %w", err)
	}
	s.rootsMap, err = ebpf.NewMap(&ebpf.MapSpec{
		Name: rootsFile, Type: ebpf.Hash, KeySize: 4, ValueSize: uint32(unsafe.Sizeof(root{})),
		MaxEntries: l.maps[bpf.LineageMapTrees].MaxEntries(), Flags: unix.BPF_F_NO_PREALLOC,
	})
	if err != nil {
		return fmt.Errorf("make the map of trees: %w", err)
	}
	if err := s.save(); err != nil {
		return err
	}
	if err := errors.Join(s.ownerMap.Pin(filepath.Join(s.dir, ownerFile)), s.rootsMap.Pin(filepath.Join(s.dir, rootsFile))); err != nil {
		return fmt.Errorf("pin the maps of trees: %w", err)
	}
	for name, m := range l.maps {
		if name == heartbeatFile {
			continue
		}
		if err := m.Pin(filepath.Join(s.dir, mapsDir, name)); err != nil {
			return fmt.Errorf("pin map %s: %w", name, err)
		}
	}
	for name, attached := range l.links {
		if err := attached.Pin(filepath.Join(s.dir, linksDir, name)); err != nil {
			return fmt.Errorf("pin program %s: %w", name, err)
		}
	}
	s.value.Complete = 1
	return s.save()
}

func (s *pinSet) save() error {
	if err := s.ownerMap.Put(uint32(0), &s.value); err != nil {
		return fmt.Errorf("write the owner of a pinned set: %w", err)
	}
	return nil
}

func (s *pinSet) close() {
	for _, m := range [...]*ebpf.Map{s.ownerMap, s.rootsMap} {
		if m != nil {
			_ = m.Close()
		}
	}
	s.ownerMap, s.rootsMap = nil, nil
}

// PinnedSet is what a bpf file system holds of one agent.
type PinnedSet struct {
	Dir string
	// StateDir is the state directory of its agent; empty = not known.
	StateDir string
	// Age is how long ago the agent was last alive.
	Age time.Duration

	complete bool
	layout   [sha256.Size]byte
}

// Dead says that its agent is gone, though perhaps only for as long as it takes to start again.
func (s PinnedSet) Dead() bool { return s.Age > deadAfter }

// Remove detaches its programs and frees its maps, unless an agent holds them open.
func (s PinnedSet) Remove() error { return removeSet(s.Dir) }

// PinnedSets lists the sets in a directory; empty = DefaultPinDir. A directory that is not there has none.
func PinnedSets(pinDir string) ([]PinnedSet, error) {
	if pinDir == "" {
		pinDir = DefaultPinDir
	}
	entries, err := os.ReadDir(pinDir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list pinned sets: %w", err)
	}
	if err := isBPFFS(pinDir); err != nil {
		return nil, nil //nolint:nilerr // what lies there was not pinned
	}
	var sets []PinnedSet
	var errs []error
	for _, e := range entries {
		if !isSetName(e.Name()) || !e.IsDir() {
			continue // not ours
		}
		set, err := readSet(filepath.Join(pinDir, e.Name()))
		if errors.Is(err, fs.ErrNotExist) {
			continue // removed meanwhile
		}
		if err != nil {
			errs = append(errs, err)
			continue
		}
		sets = append(sets, set)
	}
	return sets, errors.Join(errs...)
}

// RemoveAbandoned removes the sets whose programs count no more because their agent has been gone for too long, and returns them.
func RemoveAbandoned(pinDir string) ([]PinnedSet, error) { return removeOlder(pinDir, heartbeatLimit) }

func removeOlder(pinDir string, limit time.Duration) ([]PinnedSet, error) {
	sets, err := PinnedSets(pinDir)
	var removed []PinnedSet
	errs := []error{err}
	for _, set := range sets {
		if set.Age <= limit {
			continue
		}
		if err := set.Remove(); err != nil {
			errs = append(errs, err)
			continue
		}
		removed = append(removed, set)
	}
	return removed, errors.Join(errs...)
}

// readSet looks at a set, which may be being made or removed.
func readSet(dir string) (PinnedSet, error) {
	set := PinnedSet{Dir: dir}
	info, err := os.Stat(dir)
	if err != nil {
		return set, fmt.Errorf("look at a pinned set: %w", err)
	}
	// Before its heartbeat is there, the directory's time tells how old it is.
	set.Age = max(0, time.Since(info.ModTime()))
	readOnly := &ebpf.LoadPinOptions{ReadOnly: true}
	if beats, err := ebpf.LoadPinnedMap(filepath.Join(dir, heartbeatFile), readOnly); err == nil {
		defer beats.Close()
		var heartbeat bpf.LineageHeartbeat
		if err := beats.Lookup(uint32(0), unsafe.Slice((*byte)(unsafe.Pointer(&heartbeat)), unsafe.Sizeof(heartbeat))); err != nil {
			return set, fmt.Errorf("read the heartbeat of %s: %w", dir, err)
		}
		set.Age = time.Duration(max(0, int64(monotonicNanos()-heartbeat.BeatNanos)))
	} else if !errors.Is(err, fs.ErrNotExist) {
		return set, fmt.Errorf("read the heartbeat of %s: %w", dir, err)
	}
	owners, err := ebpf.LoadPinnedMap(filepath.Join(dir, ownerFile), readOnly)
	if errors.Is(err, fs.ErrNotExist) {
		return set, nil
	}
	if err != nil {
		return set, fmt.Errorf("read the owner of %s: %w", dir, err)
	}
	defer owners.Close()
	if owners.ValueSize() < uint32(len(set.layout)) {
		return set, nil
	}
	value, err := owners.LookupBytes(uint32(0))
	if err != nil {
		return set, fmt.Errorf("read the owner of %s: %w", dir, err)
	}
	if set.layout = [sha256.Size]byte(value); len(value) == int(unsafe.Sizeof(owner{})) {
		set.complete = binary.NativeEndian.Uint32(value[unsafe.Offsetof(owner{}.Complete):]) != 0
		set.StateDir = strings.TrimRight(string(value[unsafe.Offsetof(owner{}.StateDir):]), "\x00")
	}
	return set, nil
}

// removeSet takes the links first: no program runs on while its maps go.
func removeSet(dir string) error {
	err := errors.Join(os.RemoveAll(filepath.Join(dir, linksDir)), os.RemoveAll(dir))
	if err != nil {
		return fmt.Errorf("remove pinned set: %w", err)
	}
	return nil
}

func monotonicNanos() uint64 {
	var now unix.Timespec
	// It cannot fail: the clock exists and the pointer is good.
	_ = unix.ClockGettime(unix.CLOCK_MONOTONIC, &now)
	return uint64(now.Nano())
}
