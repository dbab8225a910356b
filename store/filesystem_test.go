package store

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestNetworkFileSystem(t *testing.T) {
	for magic, want := range map[uint32]string{
		0x6969: "NFS", 0x0BD00BD0: "Lustre", 0x47504653: "GPFS", 0x65735546: "FUSE", 0xFF534D42: "SMB/CIFS",
		0xEF53: "", 0x58465342: "", 0x9123683E: "", 0x01021994: "", 0x794C7630: "", // ext4, xfs, btrfs, tmpfs, overlayfs
	} {
		if got := networkFileSystem(magic); got != want {
			t.Errorf("%#x: %q, want %q", magic, got, want)
		}
	}
	for _, dir := range []string{"/proc", "/proc/no/such/directory", "."} {
		if name, err := NetworkFileSystem(dir); err != nil || name != "" {
			t.Errorf("%s: %q, %v", dir, name, err)
		}
	}
}

func TestPlaceOnALocalFileSystemIsTheDirectory(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a", "b")
	p, err := findPlace(dir, func(string) (string, error) { return "", nil })
	if err != nil || p.Live != dir || p.Note() != "" {
		t.Errorf("%+v, %v, note %q", p, err, p.Note())
	}
	if err := p.Finish("records.db"); err != nil {
		t.Error(err)
	}
}

func TestPlaceOnANetworkFileSystem(t *testing.T) {
	dir, slurm, runtime := t.TempDir(), t.TempDir(), t.TempDir()
	t.Setenv("SLURM_TMPDIR", slurm)
	t.Setenv("XDG_RUNTIME_DIR", runtime)
	remote := map[string]string{dir: "NFS"}
	network := func(d string) (string, error) { return remote[d], nil }

	p, err := findPlace(dir, network)
	if err != nil || filepath.Dir(p.Live) != slurm {
		t.Fatalf("%+v, %v", p, err)
	}
	if note := p.Note(); !strings.Contains(note, "NFS") || !strings.Contains(note, p.Live) {
		t.Errorf("note %q", note)
	}
	s := open(t, func(c *Config) { c.Path = filepath.Join(p.Live, "records.db") })
	add(t, s, 0, 10)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := p.Finish("records.db"); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(p.Live); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the local directory is left: %v", err)
	}
	if n := count(t, filepath.Join(dir, "records.db")); n != 10 {
		t.Errorf("%d records in the copy", n)
	}

	remote[slurm] = "Lustre"
	p, err = findPlace(dir, network)
	if err != nil || filepath.Dir(p.Live) != runtime {
		t.Errorf("%+v, %v", p, err)
	}
	if err := p.Finish("records.db"); err == nil || !strings.Contains(err.Error(), p.Live) {
		t.Errorf("nothing to copy: %v", err)
	}
	if _, err := os.Stat(p.Live); err != nil {
		t.Error("the only copy was removed")
	}

	_, err = findPlace(dir, func(string) (string, error) { return "NFS", nil })
	if err == nil || !strings.Contains(err.Error(), "SLURM_TMPDIR") {
		t.Errorf("no local directory: %v", err)
	}
}
