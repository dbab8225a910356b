package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// workload is one kind of work. Its operations are counted by whoever does them.
type workload struct {
	name, title string
	// operation says what is counted.
	operation string
	// bytes of an operation as the agent sees them; 0 = it moves none.
	bytes float64
	play  func(p *player, time time.Duration) (answer, error)
}

const trainingName = "training"

func workloads() []workload {
	const kib = 1024
	return []workload{
		{
			"read-4k", "fio, 4 KiB random reads, `O_DIRECT`, io_uring, 16 in flight; loop device in memory", "I/O", 4 * kib,
			fio(ramFile, "read", "--rw=randread", "--bs=4k", "--direct=1", "--ioengine=io_uring", "--iodepth=16"),
		},
		{
			"write-4k", "fio, 4 KiB buffered writes, fsync every 64 MiB; loop device in memory", "write", 4 * kib,
			fio(ramFile, "write", "--rw=write", "--bs=4k", "--ioengine=psync", "--fsync=16384"),
		},
		{
			"read-64k", "fio, 64 KiB random reads, `O_DIRECT`, one in flight; loop device in memory", "I/O", 64 * kib,
			fio(ramFile, "read", "--rw=randread", "--bs=64k", "--direct=1", "--ioengine=psync"),
		},
		{
			"read-64k-disk", "the same on this machine's disk", "I/O", 64 * kib,
			fio(diskFile, "read", "--rw=randread", "--bs=64k", "--direct=1", "--ioengine=psync"),
		},
		{
			"read-1m-disk", "the same, 1 MiB", "I/O", 1024 * kib,
			fio(diskFile, "read", "--rw=randread", "--bs=1m", "--direct=1", "--ioengine=psync"),
		},
		{
			"write-64k", "fio, 64 KiB buffered writes, fsync every 64 MiB; loop device in memory", "write", 64 * kib,
			fio(ramFile, "write", "--rw=write", "--bs=64k", "--ioengine=psync", "--fsync=1024"),
		},
		{"faults", "map 64 MiB, touch each page, unmap", "page", 0, faultStorm},
		{"forks", "fork, exit, wait of a process that does nothing else", "child", 0, forkStorm},
		{trainingName, "ResNet-18, a DataLoader worker that reads files, checkpoints", "step", 0, train},
	}
}

// Sizes of the files; both and the file system fit into ramBytes.
const (
	fileBytes = 256 << 20
	ramBytes  = 1 << 30
)

func ramFile(p *player, kind string) string  { return filepath.Join(p.RAM, kind) }
func diskFile(p *player, kind string) string { return filepath.Join(p.Disk, kind) }

// fio runs one job of fio on a file: one that is there already to read, a new one to write.
func fio(file func(p *player, kind string) string, kind string, arguments ...string) func(*player, time.Duration) (answer, error) {
	return func(p *player, duration time.Duration) (answer, error) {
		path := file(p, kind)
		if kind == "read" {
			if err := makeFile(path, fileBytes); err != nil {
				return answer{}, err
			}
		} else if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return answer{}, err
		}
		command := exec.Command("fio", append([]string{
			"--name=job", "--filename=" + path, fmt.Sprintf("--size=%d", fileBytes), "--fallocate=none", "--time_based", "--output-format=json",
			fmt.Sprintf("--runtime=%dms", duration.Milliseconds()),
		}, arguments...)...)
		var out, complaint bytes.Buffer
		command.Stdout, command.Stderr = &out, &complaint
		if err := command.Run(); err != nil {
			return answer{}, fmt.Errorf("fio (apt-get install fio): %w: %s%s", err, complaint.Bytes(), out.Bytes())
		}
		return readFio(out.Bytes(), kind)
	}
}

// readFio takes the figures of the one job out of fio's JSON.
func readFio(report []byte, direction string) (answer, error) {
	var parsed struct {
		Jobs []map[string]json.RawMessage
	}
	if err := json.Unmarshal(report, &parsed); err != nil || len(parsed.Jobs) != 1 {
		return answer{}, fmt.Errorf("read fio's report of %d jobs: %w", len(parsed.Jobs), err)
	}
	var side struct {
		Operations    float64 `json:"total_ios"`
		RuntimeMillis float64 `json:"runtime"`
	}
	if err := json.Unmarshal(parsed.Jobs[0][direction], &side); err != nil {
		return answer{}, fmt.Errorf("read fio's report of its %ss: %w", direction, err)
	}
	if side.Operations == 0 || side.RuntimeMillis == 0 {
		return answer{}, fmt.Errorf("fio did no %ss", direction)
	}
	return answer{Operations: side.Operations, Seconds: side.RuntimeMillis / 1000}, nil
}

// makeFile makes a file with blocks of its own, unless it is there.
func makeFile(path string, size int) error {
	if _, err := os.Stat(path); err == nil {
		return nil
	}
	chunk := bytes.Repeat([]byte("prov4ml "), 1<<17)
	file, err := os.Create(path)
	if err != nil {
		return err
	}
	for written := 0; written < size && err == nil; written += len(chunk) {
		_, err = file.Write(chunk)
	}
	return errors.Join(err, file.Sync(), file.Close())
}

// faultStorm touches pages that nobody has touched.
func faultStorm(_ *player, duration time.Duration) (answer, error) {
	const size = 64 << 20
	page := os.Getpagesize()
	begin, faults := time.Now(), 0
	for time.Since(begin) < duration {
		memory, err := unix.Mmap(-1, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
		if err != nil {
			return answer{}, fmt.Errorf("map memory: %w", err)
		}
		// One fault a page, not one a huge page; kernels without huge pages refuse the advice, and need none.
		if err := unix.Madvise(memory, unix.MADV_NOHUGEPAGE); err != nil && !errors.Is(err, unix.EINVAL) {
			return answer{}, fmt.Errorf("advise against huge pages: %w", err)
		}
		for at := 0; at < size; at += page {
			memory[at] = 1
		}
		faults += size / page
		if err := unix.Munmap(memory); err != nil {
			return answer{}, fmt.Errorf("unmap memory: %w", err)
		}
	}
	return answer{Operations: float64(faults), Seconds: time.Since(begin).Seconds()}, nil
}

// forkStorm makes one child after another. The child exits by the next system call: nothing of Go's runtime, whose other threads
// it lacks, may run in it.
func forkStorm(_ *player, duration time.Duration) (answer, error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	begin, forks := time.Now(), 0
	for time.Since(begin) < duration {
		child, _, errno := syscall.RawSyscall6(unix.SYS_CLONE, uintptr(unix.SIGCHLD), 0, 0, 0, 0, 0)
		if errno != 0 {
			return answer{}, fmt.Errorf("fork: %w", errno)
		}
		if child == 0 {
			syscall.RawSyscall(unix.SYS_EXIT_GROUP, 0, 0, 0)
		}
		for {
			_, err := unix.Wait4(int(child), nil, 0, nil)
			if err == nil {
				break
			}
			if !errors.Is(err, unix.EINTR) {
				return answer{}, fmt.Errorf("wait: %w", err)
			}
		}
		forks++
	}
	return answer{Operations: float64(forks), Seconds: time.Since(begin).Seconds()}, nil
}

// train lets the trainer, which is started once, make steps.
func train(p *player, duration time.Duration) (answer, error) {
	if p.trainer == nil {
		command := exec.Command(p.Python, p.Trainer, p.Disk)
		command.Env = append(os.Environ(), "OMP_NUM_THREADS=1")
		command.Stderr = os.Stderr
		trainer, err := startWorker(command)
		if err != nil {
			return answer{}, err
		}
		p.trainer = trainer
	}
	return p.trainer.ask(order{Do: trainingName, Seconds: duration.Seconds()})
}
