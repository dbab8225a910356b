package store

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

func TestOneAgentAFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "records.db")
	s := open(t, func(c *Config) { c.Path = path })
	_, err := Open(t.Context(), Config{Path: path})
	if !errors.Is(err, ErrLocked) || !strings.Contains(err.Error(), strconv.Itoa(os.Getpid())) {
		t.Errorf("a second agent: %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if _, err := Open(ctx, Config{Path: path, LockWait: time.Minute}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a second agent whose wait is canceled: %v", err)
	}
	time.AfterFunc(20*time.Millisecond, func() { _ = s.Close() })
	next := open(t, func(c *Config) { c.Path = path; c.LockWait = time.Minute })
	add(t, next, 0, 1)
	if err := next.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(path + ".lock"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the lock file is left: %v", err)
	}
}

func TestLockFileLeftByADeadAgentDoesNotMatter(t *testing.T) {
	path := filepath.Join(t.TempDir(), "records.db")
	if err := os.WriteFile(path+".lock", []byte("123456\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	add(t, open(t, func(c *Config) { c.Path = path }), 0, 1)
}

func TestLockIsNotFooledByARemovedFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	first, err := acquire(t.Context(), path, 0)
	if err != nil {
		t.Fatal(err)
	}
	// Somebody has the file open when its owner removes it: the lock he then gets is worth nothing.
	late, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer late.Close()
	first.release()
	if sameFile(late, path) {
		t.Error("a removed lock file passes for the present one")
	}
	second, err := acquire(t.Context(), path, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer second.release()
	if sameFile(late, path) {
		t.Error("a removed lock file passes for its successor")
	}
}
