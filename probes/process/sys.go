package process

import (
	"fmt"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The bpf system calls of the hot path, made without garbage: the buffers are the caller's. Attribute layouts: union bpf_attr in
// linux/bpf.h.

type elementAttr struct {
	fd    uint32
	_     uint32
	key   uint64
	value uint64
	flags uint64
}

// lookupElement copies an element into value, which must be as long as the kernel writes: for per-CPU maps the value size rounded up
// to 8 bytes, times the possible CPUs.
func lookupElement(fd int, key *uint32, value []byte) error {
	attr := elementAttr{fd: uint32(fd), key: uint64(uintptr(unsafe.Pointer(key))), value: uint64(uintptr(unsafe.Pointer(&value[0])))}
	_, _, errno := unix.Syscall(unix.SYS_BPF, unix.BPF_MAP_LOOKUP_ELEM, uintptr(unsafe.Pointer(&attr)), unsafe.Sizeof(attr))
	runtime.KeepAlive(key)
	runtime.KeepAlive(value)
	if errno != 0 {
		return fmt.Errorf("look up map element: %w", errno)
	}
	return nil
}

// updateElement writes an element, of a per-CPU map every CPU's copy of it.
func updateElement(fd int, key *uint32, value []byte) error {
	attr := elementAttr{fd: uint32(fd), key: uint64(uintptr(unsafe.Pointer(key))), value: uint64(uintptr(unsafe.Pointer(&value[0])))}
	_, _, errno := unix.Syscall(unix.SYS_BPF, unix.BPF_MAP_UPDATE_ELEM, uintptr(unsafe.Pointer(&attr)), unsafe.Sizeof(attr))
	runtime.KeepAlive(key)
	runtime.KeepAlive(value)
	if errno != 0 {
		return fmt.Errorf("write map element: %w", errno)
	}
	return nil
}

type runAttr struct {
	fd          uint32
	result      uint32
	dataSizeIn  uint32
	dataSizeOut uint32
	dataIn      uint64
	dataOut     uint64
	repeat      uint32
	duration    uint32
	contextIn   uint32
	contextOut  uint32
	context     uint64
	contextBack uint64
	flags       uint32
	cpu         uint32
}

// runProgram runs a program of type syscall once with context, into which the kernel writes back.
func runProgram(fd int, context unsafe.Pointer, size uintptr) (uint32, error) {
	attr := runAttr{fd: uint32(fd), contextIn: uint32(size), context: uint64(uintptr(context))}
	_, _, errno := unix.Syscall(unix.SYS_BPF, unix.BPF_PROG_TEST_RUN, uintptr(unsafe.Pointer(&attr)), unsafe.Sizeof(attr))
	runtime.KeepAlive(context)
	if errno != 0 {
		return 0, fmt.Errorf("run program: %w", errno)
	}
	return attr.result, nil
}
