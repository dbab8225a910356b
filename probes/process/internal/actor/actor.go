//go:build linux

// Package actor is a process that does known things, for the kernel tests: it takes the steps that it was given and exits.
package actor

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Variable is the environment's variable that holds the steps, as JSON.
const Variable = "PROCESS_TEST_ACTOR"

// Main takes the steps of the environment, if there are any, and exits; else it returns.
func Main() {
	script := os.Getenv(Variable)
	if script == "" {
		return
	}
	// Children of an actor get their own.
	os.Unsetenv(Variable)
	var steps []Step
	if err := json.Unmarshal([]byte(script), &steps); err != nil {
		fmt.Fprintln(os.Stderr, "actor:", err)
		os.Exit(2)
	}
	runtime.LockOSThread()
	if err := Act(steps); err != nil {
		fmt.Fprintln(os.Stderr, "actor:", err)
		os.Exit(2)
	}
	os.Exit(0)
}

// step is one thing that an actor does.
type Step struct {
	Do    string
	Path  string `json:",omitempty"`
	From  string `json:",omitempty"`
	At    int64  `json:",omitempty"`
	Bytes int64  `json:",omitempty"`
	N     int    `json:",omitempty"`
	Steps []Step `json:",omitempty"`
}

const chunk = 1 << 20

func Act(steps []Step) error {
	for _, s := range steps {
		if err := s.Act(); err != nil {
			return fmt.Errorf("%s %s: %w", s.Do, s.Path, err)
		}
	}
	return nil
}

func (s Step) Act() error {
	switch s.Do {
	case "pause": // until the test says go on
		fmt.Println("paused")
		return awaitLine()
	case "spawn": // a child, and wait for it
		return start(s.Steps, true)
	case "try": // a child, whatever becomes of it
		_ = start(s.Steps, true)
		return nil
	case "orphan": // a child whose parent is gone before it acts
		return start([]Step{{Do: "background", Steps: s.Steps}}, true)
	case "background": // a child that outlives this process, in a session of its own
		return start(append([]Step{{Do: "wait-orphaned"}}, s.Steps...), false)
	case "wait-orphaned":
		for range 1000 {
			if parent := os.Getppid(); parent != s.N {
				return nil
			}
			time.Sleep(time.Millisecond)
		}
		return errors.New("never orphaned")
	case "thread": // in another thread of this process, which exits
		return inThread(s.Steps)
	case "sleep":
		time.Sleep(time.Duration(s.N) * time.Millisecond)
		return nil
	case "write":
		return withFile(s.Path, os.O_RDWR|os.O_CREATE, func(f *os.File) error { return s.write(f, make([]byte, chunk)) })
	case "write-stripes": // every other page of so many bytes
		return withFile(s.Path, os.O_RDWR|os.O_CREATE, func(f *os.File) error {
			// xfs makes the pages between the end of the file and a write behind it dirty, all by the writer.
			if info, err := f.Stat(); err != nil || info.Size() < s.At+s.Bytes {
				if err := errors.Join(err, f.Truncate(s.At+s.Bytes)); err != nil {
					return err
				}
			}
			page := make([]byte, os.Getpagesize())
			for at := s.At; at < s.At+s.Bytes; at += 2 * int64(len(page)) {
				if _, err := f.WriteAt(page, at); err != nil {
					return err
				}
			}
			return nil
		})
	case "write-direct":
		buffer, err := anonymous(chunk)
		if err != nil {
			return err
		}
		return withFile(s.Path, os.O_RDWR|os.O_CREATE|unix.O_DIRECT, func(f *os.File) error { return s.write(f, buffer) })
	case "write-direct-from": // out of another file's mapping
		return withFile(s.From, os.O_RDWR, func(from *os.File) error {
			buffer, err := unix.Mmap(int(from.Fd()), 0, int(s.Bytes), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
			if err != nil {
				return err
			}
			return withFile(s.Path, os.O_RDWR|os.O_CREATE|unix.O_DIRECT, func(f *os.File) error {
				_, err := f.WriteAt(buffer, s.At)
				return err
			})
		})
	case "write-mmap":
		return withFile(s.Path, os.O_RDWR|os.O_CREATE, func(f *os.File) error {
			if info, err := f.Stat(); err != nil || info.Size() < s.At+s.Bytes {
				if err := errors.Join(err, f.Truncate(s.At+s.Bytes)); err != nil {
					return err
				}
			}
			memory, err := unix.Mmap(int(f.Fd()), s.At, int(s.Bytes), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
			if err != nil {
				return err
			}
			for i := 0; i < len(memory); i += os.Getpagesize() {
				memory[i] = 1
			}
			return unix.Munmap(memory)
		})
	case "write-uring":
		return withFile(s.Path, os.O_RDWR|os.O_CREATE, func(f *os.File) error { return s.writeByRing(f) })
	case "write-uring-poll": // by a thread of the kernel that looks for work
		return withFile(s.Path, os.O_RDWR|os.O_CREATE, func(f *os.File) error { s.N = 1; return s.writeByRing(f) })
	case "write-uring-direct":
		return withFile(s.Path, os.O_RDWR|os.O_CREATE|unix.O_DIRECT, func(f *os.File) error { return s.writeByRing(f) })
	case "write-aio":
		return withFile(s.Path, os.O_RDWR|os.O_CREATE|unix.O_DIRECT, func(f *os.File) error { return s.writeByAIO(f) })
	case "sendfile":
		return s.copy(func(to, from int, n int64) (int64, error) {
			sent, err := unix.Sendfile(to, from, nil, int(n))
			return int64(sent), err
		})
	case "copy-range":
		return s.copy(func(to, from int, n int64) (int64, error) {
			copied, err := unix.CopyFileRange(from, nil, to, nil, int(n), 0)
			return int64(copied), err
		})
	case "splice":
		var ends [2]int
		if err := unix.Pipe(ends[:]); err != nil {
			return err
		}
		return s.copy(func(to, from int, n int64) (int64, error) {
			in, err := unix.Splice(from, nil, ends[1], nil, int(min(n, 1<<16)), 0)
			if err != nil {
				return 0, err
			}
			for left := in; left > 0; {
				out, err := unix.Splice(ends[0], nil, to, nil, int(left), 0)
				if err != nil {
					return 0, err
				}
				left -= out
			}
			return in, nil
		})
	case "read":
		return withFile(s.Path, os.O_RDONLY, func(f *os.File) error { return s.read(f, make([]byte, chunk)) })
	case "read-direct":
		buffer, err := anonymous(chunk)
		if err != nil {
			return err
		}
		// btrfs reads into memory that is not there yet through the page cache.
		for i := 0; i < len(buffer); i += os.Getpagesize() {
			buffer[i] = 1
		}
		return withFile(s.Path, os.O_RDONLY|unix.O_DIRECT, func(f *os.File) error { return s.read(f, buffer) })
	case "read-mmap":
		return withFile(s.Path, os.O_RDONLY, func(f *os.File) error {
			memory, err := unix.Mmap(int(f.Fd()), s.At, int(s.Bytes), unix.PROT_READ, unix.MAP_SHARED)
			if err != nil {
				return err
			}
			sum := byte(0)
			for i := 0; i < len(memory); i += os.Getpagesize() {
				sum += memory[i]
			}
			if sum != 0 && s.N < 0 { // so that the compiler keeps the reads
				return errors.New("never")
			}
			return unix.Munmap(memory)
		})
	case "drop": // out of the page cache; no Bytes = to the end
		return withFile(s.Path, os.O_RDONLY, func(f *os.File) error {
			return errors.Join(f.Sync(), unix.Fadvise(int(f.Fd()), s.At, s.Bytes, unix.FADV_DONTNEED))
		})
	case "sync":
		return withFile(s.Path, os.O_RDONLY, func(f *os.File) error { return f.Sync() })
	case "sync-fs":
		return withFile(s.Path, os.O_RDONLY, func(f *os.File) error { return unix.Syncfs(int(f.Fd())) })
	case "truncate":
		return os.Truncate(s.Path, s.Bytes)
	case "remove":
		return os.Remove(s.Path)
	case "rename":
		return os.Rename(s.From, s.Path)
	case "punch":
		return withFile(s.Path, os.O_RDWR, func(f *os.File) error {
			return unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, s.At, s.Bytes)
		})
	case "trim": // a file system's free space
		return withFile(s.Path, os.O_RDONLY, func(f *os.File) error {
			span := [3]uint64{0, 1<<64 - 1, 0}
			const fitrim = 0xc0185879
			if _, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), fitrim, uintptr(unsafe.Pointer(&span))); errno != 0 {
				return errno
			}
			return nil
		})
	case "discard", "zero-out": // a range of a block device
		request := uintptr(0x1277) // BLKDISCARD
		if s.Do == "zero-out" {
			request = 0x127f // BLKZEROOUT
		}
		return withFile(s.Path, os.O_RDWR, func(f *os.File) error {
			span := [2]uint64{uint64(s.At), uint64(s.Bytes)}
			if _, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), request, uintptr(unsafe.Pointer(&span))); errno != 0 {
				return errno
			}
			return nil
		})
	case "memory": // hold so many bytes for N ms
		memory, err := anonymous(int(s.Bytes))
		if err != nil {
			return err
		}
		for i := 0; i < len(memory); i += os.Getpagesize() {
			memory[i] = 1
		}
		time.Sleep(time.Duration(s.N) * time.Millisecond)
		return unix.Munmap(memory)
	case "hold": // so many bytes until it exits, touched once and N times again
		memory, err := anonymous(int(s.Bytes))
		for range 1 + s.N {
			for i := 0; i < len(memory); i += os.Getpagesize() {
				memory[i] = byte(i >> 12)
			}
		}
		return err
	case "enter": // a cgroup
		return os.WriteFile(s.Path, []byte("0"), 0)
	case "spin": // N ms of CPU time
		for begin := cpuTime(); cpuTime()-begin < time.Duration(s.N)*time.Millisecond; {
		}
		return nil
	case "exec": // the steps in a new program, called from a thread that is not the leader
		script, err := json.Marshal(s.Steps)
		if err != nil {
			return err
		}
		failed := make(chan error)
		go func() {
			runtime.LockOSThread()
			failed <- syscall.Exec("/proc/self/exe", os.Args[:1], append(os.Environ(), Variable+"="+string(script)))
		}()
		return <-failed
	case "crowd": // N idle children, and others after a pause
		return crowd(s.N)
	case "forks": // N children one after another, each taking the steps
		for range s.N {
			if err := start(s.Steps, true); err != nil {
				return err
			}
		}
		return nil
	case "chain": // N generations, the last of which takes the steps
		if s.N == 0 {
			return Act(s.Steps)
		}
		return start([]Step{{Do: "chain", N: s.N - 1, Steps: s.Steps}}, true)
	}
	return errors.New("no such step")
}

func withFile(path string, flags int, do func(*os.File) error) error {
	f, err := os.OpenFile(path, flags, 0o600)
	if err != nil {
		return err
	}
	return errors.Join(do(f), f.Close())
}

func (s Step) write(f *os.File, buffer []byte) error {
	for i := range 256 {
		buffer[i] = byte(i)
	}
	for filled := 256; filled < len(buffer); filled *= 2 {
		copy(buffer[filled:], buffer[:filled])
	}
	for at, left := s.At, s.Bytes; left > 0; {
		n, err := f.WriteAt(buffer[:min(left, int64(len(buffer)))], at)
		if err != nil {
			return err
		}
		at, left = at+int64(n), left-int64(n)
	}
	return nil
}

func (s Step) read(f *os.File, buffer []byte) error {
	for at, left := s.At, s.Bytes; left > 0; {
		n, err := f.ReadAt(buffer[:min(left, int64(len(buffer)))], at)
		if err != nil && !errors.Is(err, io.EOF) {
			return err
		}
		if n == 0 {
			return io.ErrUnexpectedEOF
		}
		at, left = at+int64(n), left-int64(n)
	}
	return nil
}

func (s Step) copy(copySome func(to, from int, n int64) (int64, error)) error {
	return withFile(s.From, os.O_RDONLY, func(from *os.File) error {
		return withFile(s.Path, os.O_RDWR|os.O_CREATE, func(to *os.File) error {
			for left := s.Bytes; left > 0; {
				n, err := copySome(int(to.Fd()), int(from.Fd()), left)
				if err != nil {
					return err
				}
				if n == 0 {
					return io.ErrUnexpectedEOF
				}
				left -= n
			}
			return nil
		})
	})
}

// anonymous memory in small pages, also where the kernel would make huge ones of it: each page is a fault.
func anonymous(bytes int) ([]byte, error) {
	memory, err := unix.Mmap(-1, 0, bytes, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err == nil {
		_ = unix.Madvise(memory, unix.MADV_NOHUGEPAGE) // EINVAL where the kernel has no huge pages
	}
	return memory, err
}

func cpuTime() time.Duration {
	var now unix.Timespec
	if unix.ClockGettime(unix.CLOCK_PROCESS_CPUTIME_ID, &now) != nil {
		return 0
	}
	return time.Duration(now.Nano())
}

func awaitLine() error {
	var b [1]byte
	for {
		n, err := os.Stdin.Read(b[:])
		if err != nil {
			return err
		}
		if n == 1 && b[0] == '\n' {
			return nil
		}
	}
}

// inThread takes the steps in a thread that exits afterwards: a goroutine that ends locked to its thread takes it along.
func inThread(steps []Step) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		done <- Act(steps)
	}()
	return <-done
}

func start(steps []Step, wait bool) error {
	for i := range steps {
		if steps[i].Do == "wait-orphaned" {
			steps[i].N = os.Getpid()
		}
	}
	script, err := json.Marshal(steps)
	if err != nil {
		return err
	}
	child := exec.Command("/proc/self/exe")
	child.Env = append(os.Environ(), Variable+"="+string(script))
	child.Stdin, child.Stdout, child.Stderr = os.Stdin, os.Stdout, os.Stderr
	if !wait {
		child.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
		return child.Start()
	}
	return child.Run()
}

// writeByRing writes through io_uring, each chunk by a worker thread of the kernel (IOSQE_ASYNC).
func (s Step) writeByRing(f *os.File) error {
	const entries = 8
	type params struct {
		sqEntries, cqEntries, flags, sqThreadCPU, sqThreadIdle, features, wqFD uint32
		_                                                                      [3]uint32
		sq                                                                     struct {
			head, tail, ringMask, ringEntries, flags, dropped, array, _ uint32
			userAddress                                                 uint64
		}
		cq struct {
			head, tail, ringMask, ringEntries, overflow, cqes, flags, _ uint32
			userAddress                                                 uint64
		}
	}
	var p params
	enter := uintptr(1) // IORING_ENTER_GETEVENTS
	if s.N == 1 {
		p.flags, p.sqThreadIdle = 1<<1, 100 // IORING_SETUP_SQPOLL
		enter |= 1 << 1                     // IORING_ENTER_SQ_WAKEUP
	}
	ring, _, errno := unix.Syscall(unix.SYS_IO_URING_SETUP, entries, uintptr(unsafe.Pointer(&p)), 0)
	if errno != 0 {
		return fmt.Errorf("io_uring_setup: %w", errno)
	}
	defer unix.Close(int(ring))
	sq, err := unix.Mmap(int(ring), 0, int(p.sq.array+p.sqEntries*4), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return err
	}
	cq, err := unix.Mmap(int(ring), 0x8000000, int(p.cq.cqes+p.cqEntries*16), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return err
	}
	const entryBytes = 64
	sqes, err := unix.Mmap(int(ring), 0x10000000, int(p.sqEntries)*entryBytes, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return err
	}
	word := func(memory []byte, at uint32) *uint32 { return (*uint32)(unsafe.Pointer(&memory[at])) }
	buffer, err := anonymous(chunk)
	if err != nil {
		return err
	}
	for at := s.At; at < s.At+s.Bytes; at += chunk {
		const opWrite, async = 23, 1 << 4
		tail := *word(sq, p.sq.tail)
		slot := tail & (p.sqEntries - 1)
		entry := sqes[slot*entryBytes:][:entryBytes]
		clear(entry)
		entry[0] = opWrite
		if s.N == 0 {
			entry[1] = async
		}
		*word(entry, 4) = uint32(f.Fd())
		*(*uint64)(unsafe.Pointer(&entry[8])) = uint64(at)
		*(*uint64)(unsafe.Pointer(&entry[16])) = uint64(uintptr(unsafe.Pointer(&buffer[0])))
		*word(entry, 24) = chunk
		*word(sq, p.sq.array+slot*4) = slot
		atomic.StoreUint32(word(sq, p.sq.tail), tail+1)
		if _, _, errno := unix.Syscall6(unix.SYS_IO_URING_ENTER, ring, 1, 1, enter, 0, 0); errno != 0 {
			return fmt.Errorf("io_uring_enter: %w", errno)
		}
		head := *word(cq, p.cq.head)
		if result := int32(*word(cq, p.cq.cqes+(head&(p.cqEntries-1))*16+8)); result != chunk {
			return fmt.Errorf("io_uring wrote %d", result)
		}
		*word(cq, p.cq.head) = head + 1
	}
	return nil
}

// writeByAIO writes through io_submit.
func (s Step) writeByAIO(f *os.File) error {
	var context uintptr
	if _, _, errno := unix.Syscall(unix.SYS_IO_SETUP, 8, uintptr(unsafe.Pointer(&context)), 0); errno != 0 {
		return fmt.Errorf("io_setup: %w", errno)
	}
	buffer, err := anonymous(chunk)
	if err != nil {
		return err
	}
	type control struct { // struct iocb
		_      [16]byte
		opcode uint16
		_      uint16
		fd     uint32
		buffer uint64
		bytes  uint64
		offset int64
		_      [16]byte
	}
	for at := s.At; at < s.At+s.Bytes; at += chunk {
		const write = 1
		c := &control{opcode: write, fd: uint32(f.Fd()), buffer: uint64(uintptr(unsafe.Pointer(&buffer[0]))), bytes: chunk, offset: at}
		list := [1]*control{c}
		if _, _, errno := unix.Syscall(unix.SYS_IO_SUBMIT, context, 1, uintptr(unsafe.Pointer(&list))); errno != 0 {
			return fmt.Errorf("io_submit: %w", errno)
		}
		var event [4]int64
		if _, _, errno := unix.Syscall6(unix.SYS_IO_GETEVENTS, context, 1, 1, uintptr(unsafe.Pointer(&event)), 0, 0); errno != 0 {
			return fmt.Errorf("io_getevents: %w", errno)
		}
		if event[2] != chunk {
			return fmt.Errorf("aio wrote %d", event[2])
		}
		runtime.KeepAlive(c)
	}
	return nil
}
