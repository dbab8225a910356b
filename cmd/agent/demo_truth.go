package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/prov4ml/agent/probes"
	"github.com/prov4ml/agent/probes/process"
	"github.com/prov4ml/agent/record"
	"github.com/prov4ml/agent/runs"
	"github.com/prov4ml/agent/server"
	"github.com/prov4ml/agent/store"
)

// demoTruthCommand plays a job whose bytes and memory are known, under the agent as any job runs under it, and compares what
// the job's log calls record with the truth and with what else a user could ask.
type demoTruthCommand struct {
	Dir    string `help:"Directory for the job's files (250 MiB, removed afterwards); on a local disk." default:"/var/tmp" env:"PROV4ML_DEMO_DIR"`
	Python string `help:"Python to ask psutil with; without psutil its column is empty." default:"python3" env:"PYTHON"`
}

const (
	demoMiB = 1 << 20
	// What the job does. Whole MiB, so that no file system rounds them.
	demoChildBytes, demoOrphanBytes, demoGrandchildBytes, demoDirectBytes = 64 * demoMiB, 16 * demoMiB, 8 * demoMiB, 32 * demoMiB
	demoStrangerBytes                                                     = 48 * demoMiB
	demoMemoryBytes                                                       = 300 * demoMiB
)

// act is one window of the job.
type demoAct struct {
	name  string // in the table
	title string // while it is played
	order string // for the job; empty = it does nothing
	// cached is a file that is in the page cache from here on.
	cached string
	// stranger: meanwhile a process outside the tree writes its own and calls sync.
	stranger bool
	// The truth. memory: the answer has it.
	read, write int64
	memory      bool
}

func demoActs(dir string) []demoAct {
	file := func(verb, name string, size int64) string {
		return fmt.Sprintf("%s %s %d", verb, filepath.Join(dir, name), size)
	}
	return []demoAct{
		{
			name: "child, late writeback", title: "a child writes 64 MiB and exits before they are written back; a stranger writes 48 MiB and calls sync",
			order: file("write", demoChildFile, demoChildBytes), stranger: true, write: demoChildBytes,
		},
		{name: "orphan", title: "an orphan writes 16 MiB", order: file("orphan write-sync", demoOrphanFile, demoOrphanBytes), write: demoOrphanBytes},
		{name: "grandchild", title: "a grandchild writes 8 MiB", order: file("parent write-sync", demoGrandchildFile, demoGrandchildBytes), write: demoGrandchildBytes},
		{name: "child, O_DIRECT", title: "a child writes 32 MiB past the page cache (O_DIRECT)", order: file("write-direct", demoDirectFile, demoDirectBytes), write: demoDirectBytes},
		{name: "job, cold read", title: "the job reads 64 MiB from the disk", order: "read cold " + demoChildFile, read: demoChildBytes},
		{name: "job, warm read", title: "the job reads the same 64 MiB from the page cache", order: "read warm " + demoChildFile, cached: demoChildFile},
		{name: "nothing; a stranger syncs", title: "a stranger alone writes 48 MiB and calls sync", stranger: true},
		{name: "child, 300 MiB for 0.2 s", title: "a child holds 300 MiB of memory for 0.2 s", order: "hold " + strconv.Itoa(demoMemoryBytes), memory: true},
	}
}

// demoRow is one line of the table: one act by all sources. psutil and procIO are since the act before.
type demoRow struct {
	demoAct
	ours      ioCounters
	procIO    ioCounters
	psutil    psutilSample
	hasPsutil bool
	// held is what the tree held at its peak; the peak as it is published lies between two bounds, upper 0 = not bounded.
	held, peakLower, peakUpper int64
}

// heldSlack is what the tree may have held beyond the measured moment: the measuring process's own buffers and stacks.
const heldSlack = 1 * demoMiB

// peakRight says whether the peak is within the published bounds.
func (r *demoRow) peakRight() bool {
	return r.peakLower <= r.held+heldSlack && (r.peakUpper == 0 || r.held <= r.peakUpper)
}

// Run plays the job and prints the table.
func (c demoTruthCommand) Run(s streams) error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if err := onDisk(c.Dir); err != nil {
		return fmt.Errorf("--dir %s: %w", c.Dir, err)
	}
	d := &truthDemo{demoTruthCommand: c, streams: s}
	rows, err := d.play(ctx)
	if ctx.Err() != nil {
		return exitStatus(128 + int(syscall.SIGINT))
	}
	if err != nil {
		return fmt.Errorf("demo truth: %w", err)
	}
	if !printTruth(s.out, rows, d.psutilVersion) {
		return exitStatus(1)
	}
	return nil
}

// truthDemo is one play.
type truthDemo struct {
	demoTruthCommand
	streams
	psutilVersion string

	mu      sync.Mutex
	records []*record.LogCall
}

func (d *truthDemo) play(ctx context.Context) (rows []demoRow, err error) {
	dir, err := os.MkdirTemp(d.Dir, "prov4ml-demo-")
	if err != nil {
		return nil, fmt.Errorf("make a directory for the job's files: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	private, err := os.MkdirTemp("/tmp", "prov4ml-") // short: bind(2) takes 107 bytes
	if err != nil {
		return nil, fmt.Errorf("make a directory for the socket: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(private)) }()
	own, err := ownFiles()
	if err != nil {
		return nil, err
	}
	for _, file := range own {
		release, err := keepCached(file)
		if err != nil {
			return nil, err
		}
		defer release()
	}
	log := slog.New(slog.NewTextHandler(d.err, &slog.HandlerOptions{Level: slog.LevelWarn}))
	socket := filepath.Join(private, socketFile)
	a, err := startAgent(ctx, agentConfig{
		socket: server.SocketConfig{Path: socket, Mode: 0o600},
		store:  store.Config{Path: filepath.Join(private, recordsFile), Log: log},
		runs:   runs.Config{Settle: -1},
		saw:    d.saw,
		log:    log,
	})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, a.end(context.WithoutCancel(ctx), true)) }()
	if err := needsEBPF(a.probe.Status()); err != nil {
		return nil, err
	}
	job, err := startDemoJob(ctx, dir, socket)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, job.end()) }()
	if err := job.follow(ctx, a.tracker); err != nil {
		return nil, err
	}
	asker, err := startPsutil(d.Python, job.cmd.Process.Pid)
	switch {
	case errors.Is(err, errNoPsutil):
		fmt.Fprintf(d.err, "%s has no psutil: its column stays empty (--python names another)\n", d.Python)
	case err != nil:
		return nil, err
	default:
		d.psutilVersion = asker.version
		defer func() { err = errors.Join(err, asker.close()) }()
	}
	return d.acts(ctx, dir, job, asker)
}

// acts plays every act, each a window of its own.
func (d *truthDemo) acts(ctx context.Context, dir string, job *demoJob, asker *psutil) ([]demoRow, error) {
	// A window before the first: what the machine had dirty goes into it, and all sources begin to count.
	unix.Sync()
	var before demoRow
	if err := d.look(job, asker, &before, 0); err != nil {
		return nil, err
	}
	acts := demoActs(dir)
	rows := make([]demoRow, 0, len(acts))
	lastIO, lastPsutil := before.procIO, before.psutil
	for i, act := range acts {
		fmt.Fprintf(d.err, "%d/%d %s ... ", i+1, len(acts), act.title)
		began := time.Now()
		row := demoRow{demoAct: act}
		if act.cached != "" {
			release, err := keepCached(filepath.Join(dir, act.cached))
			if err != nil {
				return nil, err
			}
			defer release()
		}
		answer, err := job.order(act.order)
		if err == nil && act.stranger {
			err = stranger(ctx, dir)
		}
		if err == nil && act.memory {
			_, err = fmt.Sscan(answer, &row.held)
		}
		if err == nil {
			err = d.look(job, asker, &row, i+1)
		}
		if err != nil {
			fmt.Fprintln(d.err)
			return nil, err
		}
		nowIO, nowPsutil := row.procIO, row.psutil
		row.procIO = ioCounters{nowIO.Read - lastIO.Read, nowIO.Write - lastIO.Write}
		row.psutil.ioCounters = ioCounters{nowPsutil.Read - lastPsutil.Read, nowPsutil.Write - lastPsutil.Write}
		lastIO, lastPsutil = nowIO, nowPsutil
		rows = append(rows, row)
		fmt.Fprintf(d.err, "%.1f s\n", time.Since(began).Seconds())
	}
	return rows, nil
}

// look asks every source at a window's end: psutil and /proc as the job would, and the job makes its log call.
func (d *truthDemo) look(job *demoJob, asker *psutil, row *demoRow, step int) (err error) {
	if asker != nil {
		if row.psutil, err = asker.sample(); err != nil {
			return err
		}
		row.hasPsutil = true
	}
	if row.procIO, err = procIO(job.cmd.Process.Pid); err != nil {
		return err
	}
	if _, err := job.order("log " + strconv.Itoa(step)); err != nil {
		return err
	}
	rec := d.recordOf(step)
	if rec == nil {
		return fmt.Errorf("step %d was logged and has no record", step)
	}
	if rec.WindowIncomplete {
		fmt.Fprintf(d.err, "(window %d is incomplete: %s) ", step, strings.Join(rec.Unavailable, "; "))
	}
	for name, to := range map[string]*int64{
		record.DiskReadBytes: &row.ours.Read, record.DiskWriteBytes: &row.ours.Write,
		record.MemoryRSSPeakBytes: &row.peakLower, record.MemoryRSSPeakUpperBytes: &row.peakUpper,
	} {
		for _, reading := range rec.Readings {
			if reading.Name == name && reading.State == record.State_OK {
				*to = reading.GetInteger()
			}
		}
	}
	return nil
}

func (d *truthDemo) saw(rec *record.LogCall) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.records = append(d.records, rec)
}

func (d *truthDemo) recordOf(step int) *record.LogCall {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, rec := range d.records {
		if rec.Step != nil && rec.GetStep() == int64(step) {
			return rec
		}
	}
	return nil
}

// needsEBPF names the first probe without which there is nothing to prove.
func needsEBPF(status []probes.Status) error {
	for _, s := range status {
		if s.Source == record.Source_PROCFS && !s.OK {
			reason := s.Name + ": " + s.Reason
			if s.Cure != "" {
				reason += ": " + s.Cure
			}
			return fmt.Errorf("exact values need eBPF: %s", reason)
		}
	}
	return nil
}

// loaderCache is what the dynamic loader reads first, where there is one.
const loaderCache = "/etc/ld.so.cache"

// ownFiles are the files that every actor reads to start, for it is this binary again: the binary, its libraries, the loader's cache.
func ownFiles() ([]string, error) {
	text, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		return nil, fmt.Errorf("find the agent's own files: %w", err)
	}
	var files []string
	if exists(loaderCache) {
		files = append(files, loaderCache)
	}
	for line := range strings.Lines(string(text)) {
		// Address, permissions, offset, device, inode, path.
		fields := strings.Fields(line)
		if len(fields) == 6 && strings.HasPrefix(fields[5], "/") && !slices.Contains(files, fields[5]) && exists(fields[5]) {
			files = append(files, fields[5])
		}
	}
	return files, nil
}

// keepCached holds a file in the page cache until release is called. On a machine that is short of memory the job would read it again
// from the disk: true reads, and not those that the demo is about.
func keepCached(path string) (release func(), err error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("hold %s in the page cache: %w", path, err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("hold %s in the page cache: %w", path, err)
	}
	memory, err := unix.Mmap(int(f.Fd()), 0, int(info.Size()), unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("hold %s in the page cache: %w", path, err)
	}
	if err := unix.Mlock(memory); err != nil {
		// Over RLIMIT_MEMLOCK without CAP_IPC_LOCK: reading it once is all that can be done.
		if _, err := io.Copy(io.Discard, f); err != nil {
			return nil, errors.Join(fmt.Errorf("read %s: %w", path, err), unix.Munmap(memory))
		}
	}
	return func() { _ = unix.Munmap(memory) }, nil
}

// stranger is a process outside the job's tree.
func stranger(ctx context.Context, dir string) error {
	cmd, err := actor("stranger", filepath.Join(dir, demoStrangerFile), strconv.Itoa(demoStrangerBytes))
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start the stranger: %w", err)
	}
	defer context.AfterFunc(ctx, func() { _ = cmd.Process.Kill() })()
	if err := cmd.Wait(); err != nil {
		return fmt.Errorf("stranger: %w", err)
	}
	return nil
}

// onDisk refuses directories whose bytes no block device of this machine sees.
func onDisk(dir string) error {
	var stat unix.Statfs_t
	if err := unix.Statfs(dir, &stat); err != nil {
		return err
	}
	switch stat.Type {
	case unix.TMPFS_MAGIC, unix.RAMFS_MAGIC:
		return errors.New("it is in memory, where no disk sees the bytes; name a directory on a disk")
	}
	if system, err := store.NetworkFileSystem(dir); err != nil {
		return err
	} else if system != "" {
		return fmt.Errorf("it is on %s, whose bytes go to no disk of this machine; name a directory on a local disk", system)
	}
	return nil
}

// demoJob is the training process.
type demoJob struct {
	cmd     *exec.Cmd
	orders  io.WriteCloser
	answers *bufio.Scanner
	stop    func() bool
}

func startDemoJob(ctx context.Context, dir, socket string) (*demoJob, error) {
	cmd, err := actor("job", dir, socket)
	if err != nil {
		return nil, err
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // so that an interrupt ends its descendants, orphans included
	j := &demoJob{cmd: cmd}
	if j.orders, err = cmd.StdinPipe(); err != nil {
		return nil, fmt.Errorf("start the job: %w", err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, fmt.Errorf("start the job: %w", err)
	}
	j.answers = bufio.NewScanner(out)
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start the job: %w", err)
	}
	j.stop = context.AfterFunc(ctx, func() { _ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) })
	return j, nil
}

// follow starts counting.
func (j *demoJob) follow(ctx context.Context, tracker *runs.Tracker) error {
	stat, err := process.ReadStat("/proc", j.cmd.Process.Pid)
	if err != nil {
		return fmt.Errorf("read the job's start time: %w", err)
	}
	caller := runs.Caller{Process: probes.Process{PID: j.cmd.Process.Pid, StartTicks: stat.StartTicks}}
	if _, err := tracker.Describe(ctx, caller, runs.Description{Name: "demo truth", Script: "demo"}); err != nil {
		return fmt.Errorf("follow the job: %w", err)
	}
	return nil
}

// order has the job do something, and returns its answer.
func (j *demoJob) order(words string) (string, error) {
	if _, err := fmt.Fprintln(j.orders, words); err != nil {
		return "", fmt.Errorf("tell the job %q: %w", words, err)
	}
	if !j.answers.Scan() {
		return "", fmt.Errorf("tell the job %q: it gave no answer", words)
	}
	return j.answers.Text(), nil
}

func (j *demoJob) end() error {
	err := j.orders.Close()
	waited := j.cmd.Wait()
	j.stop()
	return errors.Join(err, waited)
}
