package store

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
)

// count returns the number of records in a file that nobody writes.
func count(t testing.TB, path string) (n int) {
	t.Helper()
	a, err := OpenArchive(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := a.Close(); err != nil {
			t.Error(err)
		}
	}()
	for r, err := range a.Records(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
		if n++; r.Seq != int64(n) {
			t.Fatalf("record %d has number %d", n, r.Seq)
		}
	}
	return n
}

func TestArchiveReadsAClosedStoreAndLeavesNothing(t *testing.T) {
	path := filled(t, 1000)
	if n := count(t, path); n != 1000 {
		t.Errorf("%d records", n)
	}
	if left, _ := filepath.Glob(path + "*"); len(left) != 1 {
		t.Errorf("left behind: %v", left)
	}
}

func TestArchiveReadsARunningStore(t *testing.T) {
	path := filepath.Join(t.TempDir(), "records.db")
	s := open(t, func(c *Config) { c.Path = path })
	add(t, s, 0, 500)
	if n := count(t, path); n != 500 {
		t.Errorf("%d records", n)
	}
	add(t, s, 500, 600)
	if n := count(t, path); n != 600 {
		t.Errorf("%d records", n)
	}
}

func TestArchiveReadsAKilledStoreItCannotWrite(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "records.db")
	s := open(t, func(c *Config) { c.Path = filepath.Join(t.TempDir(), "records.db") })
	add(t, s, 0, 300)
	// As a kill leaves it: a file and a log without a live index.
	for _, suffix := range []string{"", "-wal"} {
		if err := copyFile(s.config.Path+suffix, path+suffix, 0o444); err != nil {
			t.Fatal(err)
		}
	}
	if os.Getuid() != 0 {
		if err := os.Chmod(dir, 0o555); err != nil {
			t.Fatal(err)
		}
		defer func() { _ = os.Chmod(dir, 0o755) }()
		if n := count(t, path); n != 300 {
			t.Errorf("%d records", n)
		}
		return
	}
	// Root writes everywhere, so another user must read.
	for d := dir; d != os.TempDir() && d != "/"; d = filepath.Dir(d) {
		if err := os.Chmod(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	exe := filepath.Join(dir, "reader")
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	if err := copyFile(self, exe, 0o755); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), exe)
	cmd.Env = append(os.Environ(), childVariable+"=count", "PROV4ML_TEST_FILE="+path, "TMPDIR=/tmp")
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	out, err := cmd.CombinedOutput()
	if err != nil || string(out) != "300\n" {
		t.Errorf("%v: %s", err, out)
	}
}

func countMain() error {
	a, err := OpenArchive(context.Background(), os.Getenv("PROV4ML_TEST_FILE"))
	if err != nil {
		return err
	}
	n := 0
	for _, err := range a.Records(context.Background()) {
		if err != nil {
			return err
		}
		n++
	}
	fmt.Println(n)
	return a.Close()
}
