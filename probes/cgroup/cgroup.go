package cgroup

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/prov4ml/agent/probes"
	"github.com/prov4ml/agent/record"
)

// Config says where to read. The zero value is that of a live machine.
type Config struct {
	// ProcRoot is where procfs is mounted; default /proc.
	ProcRoot string
	// MaxAge is how old a reading may be that Read hands out again; default 10 ms, negative = none.
	MaxAge time.Duration
}

// slower is how many times MaxAge what changes rarely, or costs much, may be old: which cgroup it is (1 s by default), and its limit
// (twice that, since processes of one cgroup share it).
// The kernel takes 172 µs to print a mountinfo of 400 mounts. And the parts: to print memory.stat the kernel adds up all CPUs'
// counts, which it does by itself only every 2 s (FLUSH_TIME in mm/memcontrol.c).
const slower = 100

// slowest is the same for where the hierarchies are mounted (a minute by default).
const slowest = 6000

// Value is a number of bytes, or of µs of PSI, and how well it is known.
type Value struct {
	// Amount is meaningless unless State is OK.
	Amount uint64
	State  record.State
	// Reason says why State is not OK.
	Reason string
}

// Memory is what is known of one memory cgroup at one moment.
type Memory struct {
	// State is that of everything below; Reason says why it is not OK.
	State  record.State
	Reason string
	// Path of the cgroup below the mount point of its hierarchy.
	Path string

	// Usage now, the largest since the cgroup was made (v2: 5.19), and the limit; without a limit that is absent.
	UsageBytes, PeakBytes, LimitBytes Value
	// What the usage is made of; what is in none of them is little (sockets, or in v1 what is being charged).
	AnonBytes, FileBytes, ShmemBytes, KernelBytes Value
	// Time in which some, or all, of its processes stood still for lack of memory, cumulative, in µs. v2 only.
	SomeMicros, FullMicros Value
	// The same of the whole machine, whatever State is.
	HostSomeMicros, HostFullMicros Value

	taken time.Time
	pid   int
	home  home
}

// home is the cgroup that is read for a process.
type home struct {
	files
	mount, below string
	// dir is where its files are, path what Memory.Path says, limitBytes its LimitBytes.
	dir, path  string
	limitBytes Value
	// missing says why there is none; empty = there is one.
	missing string
	found   time.Time
	open    *openFiles
}

// openFiles are those that are read each time. Nobody closes those of a process that has exited but the garbage collector.
type openFiles struct{ usage, peak, pressure *probes.File }

func (h *home) openFiles() *openFiles {
	name := func(file string) *probes.File { return probes.NewFile(filepath.Join(h.dir, file)) }
	return &openFiles{usage: name(h.usage), peak: name(h.peak), pressure: name(h.pressure)}
}

func (o *openFiles) close() {
	o.usage.Close()
	o.peak.Close()
	o.pressure.Close()
}

// Probe reads cgroups. Its methods may be called from any goroutine.
type Probe struct {
	config Config
	now    func() time.Time

	mu       sync.Mutex
	pressure *probes.File // the host's

	// mounts are where the hierarchies are mounted, by version; what was not found is not in it.
	mounts lately[int, mounted]
	// homes and parts are what was found and read, by where the process is and by directory, for all processes of a cgroup.
	homes lately[place, home]
	parts lately[string, parts]
}

// mounted is a mount point of a hierarchy, and which of its directories is mounted there.
type mounted struct{ mount, root string }

// place is the cgroup that a process is in.
type place struct{ mount, below string }

// parts is what the usage of a cgroup is made of.
type parts struct{ anonBytes, fileBytes, shmemBytes, kernelBytes Value }

// New makes a probe.
func New(config Config) *Probe {
	if config.ProcRoot == "" {
		config.ProcRoot = "/proc"
	}
	if config.MaxAge == 0 {
		config.MaxAge = 10 * time.Millisecond
	}
	return &Probe{
		config:   config,
		now:      time.Now,
		pressure: probes.NewFile(filepath.Join(config.ProcRoot, "pressure", "memory")),
	}
}

// Read returns the memory cgroup of a process, or last where that is a reading of the same process and young enough. Of a process that
// has exited it reads the cgroup of last. With a last of nil nothing is of an older reading, not even of another process. The
// readings of one process are made one after the other: they share open files.
func (p *Probe) Read(pid int, last *Memory) Memory {
	now, age := p.now(), slower*p.config.MaxAge
	if last == nil {
		age = 0
	}
	if last != nil && (last.pid != pid || last.taken.IsZero()) {
		last = nil
	}
	if last != nil && now.Sub(last.taken) < p.config.MaxAge {
		return *last
	}
	var m Memory
	if last != nil && now.Sub(last.home.found) < slower*p.config.MaxAge {
		m.home = last.home
		p.readHome(&m, now, age)
	}
	if m.State != record.State_OK && (m.home.missing == "" || m.home.found.IsZero()) {
		// None is known yet, or it is gone, and then what is known of it is not to be trusted.
		if !m.home.found.IsZero() {
			age = 0
		}
		m = Memory{home: p.findHome(pid, last, now, age)}
		p.readHome(&m, now, age)
	}
	m.HostSomeMicros, m.HostFullMicros = p.hostPressure()
	m.taken, m.pid = now, pid
	return m
}

// readHome reads the values of m.home; its parts if none younger than age are known.
func (p *Probe) readHome(m *Memory, now time.Time, age time.Duration) {
	h := &m.home
	if h.missing != "" {
		m.State, m.Reason = record.State_ABSENT, "cgroup: "+h.missing
		return
	}
	m.UsageBytes = numberOf(h.open.usage, h.usage, "")
	if m.UsageBytes.State != record.State_OK {
		m.State, m.Reason = record.State_ABSENT, "cgroup: no cgroup of the process accounts memory, or it is gone"
		return
	}
	// Any bytes make a directory's name; a record's texts are UTF-8.
	m.State, m.Path, m.LimitBytes = record.State_OK, strings.ToValidUTF8(h.path, "\uFFFD"), h.limitBytes
	m.PeakBytes = numberOf(h.open.peak, h.peak, h.noPeak)
	m.SomeMicros, m.FullMicros = h.readPressure()
	of, ok := p.parts.get(h.dir, now, age)
	if !ok {
		of = h.readStat(h.dir)
		p.parts.put(h.dir, of, now)
	}
	m.AnonBytes, m.FileBytes, m.ShmemBytes, m.KernelBytes = of.anonBytes, of.fileBytes, of.shmemBytes, of.kernelBytes
}

// findHome finds the cgroup of a process; of one that has exited, the one that last has. What others have found is good if younger than
// age.
func (p *Probe) findHome(pid int, last *Memory, now time.Time, age time.Duration) home {
	h, err := p.find(pid)
	if errors.Is(err, fs.ErrNotExist) && last != nil && last.State == record.State_OK {
		h, err = last.home, nil
	}
	if err != nil {
		h.missing = err.Error()
	} else {
		p.choose(&h, now, age)
	}
	h.found = now
	if last != nil && last.home.open != nil {
		if h.missing == "" && h.dir == last.home.dir {
			h.open = last.home.open
			return h
		}
		last.home.open.close()
	}
	h.open = h.openFiles()
	return h
}

// find finds the memory cgroup of a process; an error that is fs.ErrNotExist says that there is no such process.
func (p *Probe) find(pid int) (home, error) {
	text, err := os.ReadFile(filepath.Join(p.config.ProcRoot, strconv.Itoa(pid), "cgroup"))
	if errors.Is(err, unix.ESRCH) {
		err = fs.ErrNotExist // it went between open and read
	}
	if err != nil {
		return home{}, fmt.Errorf("the process's cgroup cannot be read: %w", err)
	}
	version, below := memoryPath(string(text))
	switch {
	case version == 0:
		return home{}, errors.New("memory is not accounted by cgroup")
	case below == "/":
		return home{}, errors.New("the process is in the root cgroup, which is the host")
	case strings.HasPrefix(below, "/.."):
		return home{}, errors.New("the process's cgroup is outside the agent's cgroup namespace")
	}
	at, err := p.mountOf(version)
	if err != nil {
		return home{}, err
	}
	relative, ok := strings.CutPrefix(below, strings.TrimSuffix(at.root, "/"))
	if !ok {
		return home{}, errors.New("the process's cgroup is outside what is mounted where the agent runs")
	}
	if version == 1 {
		return home{files: v1(), mount: at.mount, below: relative}, nil
	}
	return home{files: v2(), mount: at.mount, below: relative}, nil
}

// mountOf returns where a hierarchy is mounted, as it was read lately.
func (p *Probe) mountOf(version int) (mounted, error) {
	now := p.now()
	if known, ok := p.mounts.get(version, now, slowest*p.config.MaxAge); ok {
		return known, nil
	}
	text, err := os.ReadFile(filepath.Join(p.config.ProcRoot, "self", "mountinfo"))
	if err != nil {
		return mounted{}, fmt.Errorf("mount points cannot be read: %v", err)
	}
	mount, root, ok := mountOf(string(text), version)
	if !ok {
		return mounted{}, errors.New("the memory hierarchy is not mounted where the agent runs")
	}
	found := mounted{mount, root}
	p.mounts.put(version, found, now)
	return found, nil
}

// choose chooses the cgroup, or takes what was chosen for the same place.
func (p *Probe) choose(h *home, now time.Time, age time.Duration) {
	at := place{h.mount, h.below}
	if known, ok := p.homes.get(at, now, age); ok {
		*h = known
		return
	}
	h.choose()
	if h.missing != "" {
		p.mounts.forget() // perhaps it is mounted elsewhere now
		return
	}
	known := *h
	known.open = nil // each process has its own
	p.homes.put(at, known, now)
}

// memoryPath returns which version accounts the process's memory, and the path of its cgroup; 0 = none does.
func memoryPath(text string) (version int, below string) {
	for line := range strings.Lines(text) {
		parts := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(parts) != 3 {
			continue
		}
		if parts[0] == "0" && parts[1] == "" && version == 0 {
			version, below = 2, parts[2]
		}
		for controller := range strings.SplitSeq(parts[1], ",") {
			if controller == "memory" {
				version, below = 1, parts[2]
			}
		}
	}
	// A cgroup that was removed while the process still exits.
	return version, strings.TrimSuffix(below, " (deleted)")
}

// mountOf finds the hierarchy in mountinfo (proc_pid_mountinfo(5)): its mount point, and which of its directories is mounted there.
func mountOf(text string, version int) (mount, root string, ok bool) {
	for line := range strings.Lines(text) {
		before, after, found := strings.Cut(line, " - ")
		fields, kind := strings.Fields(before), strings.Fields(after)
		if !found || len(fields) < 5 || len(kind) < 3 {
			continue
		}
		switch {
		case version == 2 && kind[0] == "cgroup2":
		case version == 1 && kind[0] == "cgroup" && hasOption(kind[2], "memory"):
		default:
			continue
		}
		return unescape(fields[4]), unescape(fields[3]), true
	}
	return "", "", false
}

func hasOption(options, name string) bool {
	for option := range strings.SplitSeq(options, ",") {
		if option == name {
			return true
		}
	}
	return false
}

// unescape undoes mountinfo's octal escapes.
func unescape(text string) string {
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(text)
}

// files are the names of one version, and how its memory.stat is read.
type files struct {
	usage, peak, limit string
	// kernel memory: a file of its own, or a key of memory.stat.
	kernelFile, kernelKey string
	anon, file, shmem     string
	pressure              string
	// why a peak or PSI is not there.
	noPeak, noPressure string
}

func v1() files {
	return files{
		usage: "memory.usage_in_bytes", peak: "memory.max_usage_in_bytes", limit: "memory.limit_in_bytes",
		kernelFile: "memory.kmem.usage_in_bytes",
		anon:       "total_rss", file: "total_cache", shmem: "total_shmem",
		noPressure: "cgroup v1 has no PSI of a cgroup",
	}
}

func v2() files {
	return files{
		usage: "memory.current", peak: "memory.peak", limit: "memory.max",
		kernelKey: "kernel",
		anon:      "anon", file: "file", shmem: "shmem",
		pressure: "memory.pressure",
		noPeak:   "memory.peak is there from kernel 5.19 on", noPressure: noPSI,
	}
}

// choose chooses the cgroup at mount/below or the one around it whose limit is smaller.
func (h *home) choose() {
	chosen, limit := "", uint64(math.MaxUint64)
	for at := path.Clean("/" + h.below); at != "/"; at = path.Dir(at) {
		if _, err := os.Stat(filepath.Join(h.mount, at, h.usage)); err != nil {
			continue // v2: the controller is off here, and on further up
		}
		if chosen == "" {
			chosen = at
		}
		if found, ok := readLimit(filepath.Join(h.mount, at, h.limit)); ok && found < limit {
			chosen, limit = at, found
		}
	}
	h.missing = ""
	if chosen == "" {
		h.missing = "no cgroup of the process accounts memory, or it is gone"
		return
	}
	h.dir, h.path = filepath.Join(h.mount, chosen), chosen
	h.limitBytes = Value{Amount: limit, State: record.State_OK}
	if limit == math.MaxUint64 {
		h.limitBytes = Value{State: record.State_ABSENT, Reason: "the cgroup has no limit"}
	}
}

// noPSI is the reason of a kernel built with CONFIG_PSI_DEFAULT_DISABLED, or without PSI.
const noPSI = "the kernel runs without PSI (boot with psi=1)"

// noLimit is where v1's "no limit" begins: the largest number of pages that a signed 64-bit number of bytes holds.
const noLimit = 1 << 62

func readLimit(file string) (uint64, bool) {
	v := readNumber(file, "")
	return v.Amount, v.State == record.State_OK && v.Amount < noLimit
}

func readNumber(path, missing string) Value {
	file := probes.NewFile(path)
	defer file.Close()
	return numberOf(file, filepath.Base(path), missing)
}

// numberOf reads a file that holds a number; missing is the reason when it is not there.
func numberOf(file *probes.File, name, missing string) Value {
	var buffer [64]byte
	text, err := file.Read(buffer[:])
	if err != nil {
		return notRead(err, missing)
	}
	text = bytes.TrimSpace(text)
	n, err := strconv.ParseUint(string(text), 10, 64)
	if err != nil { // v2 writes max for no limit
		return Value{State: record.State_ABSENT, Reason: fmt.Sprintf("%s is %q", name, text)}
	}
	return Value{Amount: n, State: record.State_OK}
}

// notRead says why a file could not be read; missing is the reason when it is not there.
func notRead(err error, missing string) Value {
	if missing != "" && errors.Is(err, fs.ErrNotExist) {
		return Value{State: record.State_UNSUPPORTED, Reason: missing}
	}
	return Value{State: record.State_ABSENT, Reason: err.Error()}
}

func (f files) readStat(dir string) (p parts) {
	text, err := os.ReadFile(filepath.Join(dir, "memory.stat"))
	if err != nil {
		v := notRead(err, "")
		return parts{anonBytes: v, fileBytes: v, shmemBytes: v, kernelBytes: v}
	}
	unknown := func(key string) Value {
		return Value{State: record.State_UNSUPPORTED, Reason: "this kernel's memory.stat has no " + key}
	}
	p.anonBytes, p.fileBytes, p.shmemBytes, p.kernelBytes = unknown(f.anon), unknown(f.file), unknown(f.shmem), unknown("kernel")
	for line := range strings.Lines(string(text)) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), " ")
		n, err := strconv.ParseUint(value, 10, 64)
		if err != nil {
			continue
		}
		switch v := (Value{Amount: n, State: record.State_OK}); key {
		case f.anon:
			p.anonBytes = v
		case f.file:
			p.fileBytes = v
		case f.shmem:
			p.shmemBytes = v
		case f.kernelKey:
			p.kernelBytes = v
		}
	}
	// Both versions count shared memory as file pages too.
	p.fileBytes.Amount -= min(p.shmemBytes.Amount, p.fileBytes.Amount)
	if f.kernelFile != "" {
		p.kernelBytes = readNumber(filepath.Join(dir, f.kernelFile), "this kernel has no "+f.kernelFile)
	}
	return p
}

func (h *home) readPressure() (some, full Value) {
	none := Value{State: record.State_UNSUPPORTED, Reason: h.noPressure}
	if h.pressure == "" {
		return none, none
	}
	var buffer [pressureBytes]byte
	text, err := h.open.pressure.Read(buffer[:])
	if err != nil { // EOPNOTSUPP where PSI was not switched on at boot
		return none, none
	}
	return parsePressure(string(text))
}

// pressureBytes hold the two lines of PSI.
const pressureBytes = 256

// parsePressure reads the totals of "some avg10=0.00 avg60=0.00 avg300=0.00 total=0" and of "full ..." (Documentation/accounting/psi.rst).
func parsePressure(text string) (some, full Value) {
	none := Value{State: record.State_ABSENT, Reason: "PSI has no such line"}
	some, full = none, none
	for line := range strings.Lines(text) {
		fields := strings.Fields(line)
		if len(fields) < 2 {
			continue
		}
		total, ok := strings.CutPrefix(fields[len(fields)-1], "total=")
		n, err := strconv.ParseUint(total, 10, 64)
		if !ok || err != nil {
			continue
		}
		switch v := (Value{Amount: n, State: record.State_OK}); fields[0] {
		case "some":
			some = v
		case "full":
			full = v
		}
	}
	return some, full
}

// hostPressure reads the same totals of the whole machine.
func (p *Probe) hostPressure() (some, full Value) {
	p.mu.Lock()
	defer p.mu.Unlock()
	var buffer [pressureBytes]byte
	text, err := p.pressure.Read(buffer[:])
	if err != nil {
		v := Value{State: record.State_UNSUPPORTED, Reason: noPSI}
		return v, v
	}
	return parsePressure(string(text))
}
