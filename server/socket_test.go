package server

import (
	"context"
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// shortDir is a directory whose path leaves room for a socket.
func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "p4")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

func TestSocketPathLength(t *testing.T) {
	dir := shortDir(t)
	path := filepath.Join(dir, strings.Repeat("s", MaxPathBytes-len(dir)-1))
	s, err := listen(t.Context(), SocketConfig{Path: path})
	if err != nil {
		t.Fatalf("%d bytes: %v", len(path), err)
	}
	c, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(c.Close(), s.Close()); err != nil {
		t.Error(err)
	}
	_, err = listen(t.Context(), SocketConfig{Path: path + "s"})
	if !errors.Is(err, ErrPathTooLong) || !strings.Contains(err.Error(), "108 bytes") || !strings.Contains(err.Error(), "choose a shorter one") {
		t.Errorf("one byte more: %v", err)
	}
	if _, err := listen(t.Context(), SocketConfig{}); err == nil {
		t.Error("no path is taken")
	}
	if _, err := listen(t.Context(), SocketConfig{Path: "@agent"}); err == nil || !strings.Contains(err.Error(), "abstract") {
		t.Errorf("abstract: %v", err)
	}
}

func TestSocketFile(t *testing.T) {
	for name, tt := range map[string]struct {
		cfg  SocketConfig
		mode fs.FileMode
		gid  int // -1 = whatever the process's is
	}{
		"default":        {SocketConfig{}, 0o660, -1},
		"mode":           {SocketConfig{Mode: 0o666}, 0o666, -1},
		"group number":   {SocketConfig{Group: strconv.Itoa(os.Getgid())}, 0o660, os.Getgid()},
		"mode and group": {SocketConfig{Mode: 0o600, Group: strconv.Itoa(os.Getgid())}, 0o600, os.Getgid()},
	} {
		t.Run(name, func(t *testing.T) {
			tt.cfg.Path = filepath.Join(shortDir(t), "made", "as needed", "a.sock")
			s, err := listen(t.Context(), tt.cfg)
			if err != nil {
				t.Fatal(err)
			}
			info, err := os.Lstat(tt.cfg.Path)
			if err != nil {
				t.Fatal(err)
			}
			if info.Mode().Type() != fs.ModeSocket || info.Mode().Perm() != tt.mode {
				t.Errorf("mode %v", info.Mode())
			}
			if gid := int(info.Sys().(*syscall.Stat_t).Gid); tt.gid >= 0 && gid != tt.gid {
				t.Errorf("group %d", gid)
			}
			if err := s.Close(); err != nil {
				t.Error(err)
			}
			if err := s.Close(); err != nil {
				t.Errorf("closed twice: %v", err)
			}
			if _, err := os.Lstat(tt.cfg.Path); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("it is still there: %v", err)
			}
		})
	}
	if _, err := listen(t.Context(), SocketConfig{Path: filepath.Join(shortDir(t), "a"), Group: "no such group"}); err == nil || !strings.Contains(err.Error(), "no such group") {
		t.Errorf("no such group: %v", err)
	}
}

// A dead agent's socket is in nobody's way; a living one's is left alone.
func TestSocketStale(t *testing.T) {
	path := filepath.Join(shortDir(t), "a.sock")
	dead, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	dead.SetUnlinkOnClose(false)
	if err := dead.Close(); err != nil {
		t.Fatal(err)
	}
	s, err := listen(t.Context(), SocketConfig{Path: path})
	if err != nil {
		t.Fatalf("a dead socket: %v", err)
	}
	if _, err := listen(t.Context(), SocketConfig{Path: path}); !errors.Is(err, ErrInUse) {
		t.Errorf("a second agent: %v", err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}

	// Somebody else's, without our lock.
	other, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	if _, err := listen(t.Context(), SocketConfig{Path: path}); !errors.Is(err, ErrInUse) || !strings.Contains(err.Error(), "process "+strconv.Itoa(os.Getpid())) {
		t.Errorf("somebody else's: %v", err)
	}
	if _, err := os.Lstat(path); err != nil {
		t.Errorf("it is gone: %v", err)
	}
}

func TestSocketIsAFile(t *testing.T) {
	path := filepath.Join(shortDir(t), "a.sock")
	if err := os.WriteFile(path, []byte("mine"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := listen(t.Context(), SocketConfig{Path: path}); err == nil || !strings.Contains(err.Error(), "is no socket") {
		t.Errorf("%v", err)
	}
	if data, err := os.ReadFile(path); err != nil || string(data) != "mine" {
		t.Errorf("the file is now %q, %v", data, err)
	}
}

// A starting agent waits for an ending one, as long as it was told to, and takes over.
func TestSocketTakeOver(t *testing.T) {
	path := filepath.Join(shortDir(t), "a.sock")
	first, err := listen(t.Context(), SocketConfig{Path: path})
	if err != nil {
		t.Fatal(err)
	}
	type result struct {
		s   *socket
		err error
	}
	second := make(chan result)
	go func() {
		s, err := listen(t.Context(), SocketConfig{Path: path, Wait: time.Hour})
		second <- result{s, err}
	}()
	select {
	case r := <-second:
		t.Fatalf("it did not wait: %v", r.err)
	case <-time.After(10 * time.Millisecond):
	}
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	r := <-second
	if r.err != nil {
		t.Fatal(r.err)
	}
	defer r.s.Close()
	c, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	_ = c.Close()

	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := listen(ctx, SocketConfig{Path: path, Wait: time.Hour}); !errors.Is(err, context.Canceled) {
		t.Errorf("stopped while it waits: %v", err)
	}
	if _, err := listen(t.Context(), SocketConfig{Path: path, Wait: time.Millisecond}); !errors.Is(err, ErrInUse) {
		t.Errorf("after the wait: %v", err)
	}
}

// Closing removes the file that it made, not one that has taken its place.
func TestSocketCloseLeavesOthers(t *testing.T) {
	path := filepath.Join(shortDir(t), "a.sock")
	s, err := listen(t.Context(), SocketConfig{Path: path})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Lstat(path); err != nil {
		t.Errorf("the other file is gone: %v", err)
	}
}

// The lock is not inherited by the training that run starts.
func TestSocketLockIsNotInherited(t *testing.T) {
	s, err := listen(t.Context(), SocketConfig{Path: filepath.Join(shortDir(t), "a.sock")})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	flags, err := unix.FcntlInt(s.lock.Fd(), unix.F_GETFD, 0)
	if err != nil || flags&unix.FD_CLOEXEC == 0 {
		t.Errorf("flags %x, %v", flags, err)
	}
}
