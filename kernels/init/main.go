//go:build linux

// Command init is the first process of a kernel under test. It mounts what the tests need, loads the modules, runs the test
// binary, says on the second serial line how that ended, and powers off.
//
// The initramfs holds, beside the tools: /modules/NN-NAME.ko, loaded in the order of their names; /test, the binary; /actor, the
// program that it plays; /arguments, one a line; and /environment, one a line.
package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// verdict is what kernels/run looks for, followed by the test's exit status.
const verdict = "kernel-test: exit "

func main() {
	status, err := prepareAndRun()
	if err != nil {
		fmt.Fprintln(os.Stderr, "init:", err)
		status = 125
	}
	if line, err := openLine(); err == nil {
		fmt.Fprintf(line, "\n%s%d\n", verdict, status)
		_ = unix.IoctlSetInt(int(line.Fd()), unix.TCSBRK, 1) // drain
	}
	unix.Sync()
	_ = unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
}

func prepareAndRun() (status int, err error) {
	if err := mountAll(); err != nil {
		return 0, err
	}
	if err := loadModules(); err != nil {
		return 0, err
	}
	// The disk is the root file system of the tests: what they write to a directory of theirs reaches a device.
	if err := mount("/dev/vda", "/tmp", "ext4"); err != nil {
		return 0, err
	}
	// Kernels before 5.11 account what BPF maps take to this limit.
	unlimited := unix.Rlimit{Cur: unix.RLIM_INFINITY, Max: unix.RLIM_INFINITY}
	if err := unix.Setrlimit(unix.RLIMIT_MEMLOCK, &unlimited); err != nil {
		return 0, fmt.Errorf("raise the limit of locked memory: %w", err)
	}
	return runTest()
}

func mountAll() error {
	// The console is opened by the kernel before devtmpfs is there.
	for _, m := range []struct{ source, dir, kind string }{
		{"proc", "/proc", "proc"},
		{"sys", "/sys", "sysfs"},
		{"dev", "/dev", "devtmpfs"},
		{"tracefs", "/sys/kernel/tracing", "tracefs"},
		{"bpf", "/sys/fs/bpf", "bpf"},
		{"cgroup", "/sys/fs/cgroup", "cgroup2"},
		{"shm", "/dev/shm", "tmpfs"},
		{"run", "/run", "tmpfs"},
	} {
		if err := mount(m.source, m.dir, m.kind); err != nil {
			return err
		}
	}
	if err := os.WriteFile("/sys/fs/cgroup/cgroup.subtree_control", []byte("+memory +pids +cpu"), 0); err != nil {
		return fmt.Errorf("delegate cgroup controllers: %w", err)
	}
	return nil
}

func mount(source, dir, kind string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	if err := unix.Mount(source, dir, kind, 0, ""); err != nil {
		return fmt.Errorf("mount %s on %s: %w", source, dir, err)
	}
	return nil
}

func loadModules() error {
	modules, err := filepath.Glob("/modules/*.ko") // in lexical order
	if err != nil {
		return err
	}
	for _, path := range modules {
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		err = unix.FinitModule(int(f.Fd()), parameters(path), 0)
		// ENODEV: crc32c-intel on a processor without the instruction; another implementation takes its place.
		if err != nil && !errors.Is(err, unix.EEXIST) && !errors.Is(err, unix.ENODEV) {
			err = fmt.Errorf("load module %s: %w", path, err)
		} else {
			err = nil
		}
		if err := errors.Join(err, f.Close()); err != nil {
			return err
		}
	}
	return nil
}

// parameters of a module: one RAM disk, large enough for any file system, of which memory is taken as it is written.
func parameters(path string) string {
	if strings.HasSuffix(path, "-brd.ko") {
		return "rd_nr=1 rd_size=524288"
	}
	return ""
}

// openLine opens the second serial line, without a terminal's translations.
func openLine() (*os.File, error) {
	line, err := os.OpenFile("/dev/ttyS1", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, err
	}
	state, err := unix.IoctlGetTermios(int(line.Fd()), unix.TCGETS)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("read settings of the serial line: %w", err), line.Close())
	}
	state.Oflag &^= unix.OPOST
	if err := unix.IoctlSetTermios(int(line.Fd()), unix.TCSETS, state); err != nil {
		return nil, errors.Join(fmt.Errorf("set the serial line: %w", err), line.Close())
	}
	return line, nil
}

func runTest() (status int, err error) {
	arguments, err := lines("/arguments")
	if err != nil {
		return 0, err
	}
	environment, err := lines("/environment")
	if err != nil {
		return 0, err
	}
	line, err := openLine()
	if err != nil {
		return 0, err
	}
	defer line.Close()
	silence, err := os.Open(os.DevNull)
	if err != nil {
		return 0, err
	}
	defer silence.Close()
	if err := errors.Join(copyFile("/test", binary), copyFile("/actor", "/tmp/actor")); err != nil {
		return 0, err
	}
	test, err := syscall.ForkExec(binary, append([]string{binary}, arguments...), &syscall.ProcAttr{
		Dir: "/tmp", Env: environment, Files: []uintptr{silence.Fd(), line.Fd(), line.Fd()},
	})
	if err != nil {
		return 0, fmt.Errorf("start the test: %w", err)
	}
	// Orphans of the tests are ours to reap.
	for {
		var ended unix.WaitStatus
		pid, err := unix.Wait4(-1, &ended, 0, nil)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return 0, fmt.Errorf("wait for the test: %w", err)
		case pid == test && ended.Signaled():
			return 128 + int(ended.Signal()), nil
		case pid == test:
			return ended.ExitStatus(), nil
		}
	}
}

// binary is where the test runs: on the disk, like any program, and like its actor. From the initramfs its pages would be shared memory.
const binary = "/tmp/process.test"

func copyFile(from, to string) error {
	text, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	return os.WriteFile(to, text, 0o755)
}

func lines(path string) ([]string, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	return strings.FieldsFunc(string(text), func(r rune) bool { return r == '\n' }), nil
}
