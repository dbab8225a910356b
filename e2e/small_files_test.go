package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// A file system writes whole blocks, and that is what reached the device.
func TestSmallFilesWriteWholeBlocks(t *testing.T) {
	dir := dataDir(t)
	image, mounted := filepath.Join(dir, "image"), filepath.Join(dir, "mnt")
	must := func(command ...string) string {
		t.Helper()
		out, err := exec.Command(command[0], command[1:]...).CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %v: %s", command, err, out)
		}
		return strings.TrimSpace(string(out))
	}
	must("truncate", "--size=128M", image)
	// inline_data would put the bytes into the inode, which is metadata.
	must("mkfs.ext4", "-q", "-b", "4096", "-O", "^inline_data", "-E", "lazy_itable_init=0,lazy_journal_init=0", image)
	if err := os.Mkdir(mounted, 0o700); err != nil {
		t.Fatal(err)
	}
	must("mount", "-o", "loop", image, mounted)
	t.Cleanup(func() { must("umount", mounted) })

	out := filepath.Join(dir, "run")
	const files, size, block = 50, 100, 4096
	if code := startRun(t, out, nil, python(), script(t, "small_files.py"), mounted, strconv.Itoa(files), strconv.Itoa(size)).exit(t); code != 0 {
		t.Fatalf("exit status %d", code)
	}
	one := atStep(t, readSpans(t, filepath.Join(out, "traces.jsonl")), 1)
	if got := one.integer(t, "disk.write_bytes"); got != files*block {
		t.Errorf("%d files of %d bytes wrote %d, want %d each", files, size, got, block)
	}
	if got := one.integer(t, "disk.dirtied_bytes"); got != files*block {
		t.Errorf("%d files of %d bytes made %d dirty, want %d each", files, size, got, block)
	}
	if got := one.integer(t, "io.write_bytes"); got < files*size || got >= files*block {
		t.Errorf("asked for %d, want the %d that the files hold and not whole blocks", got, files*size)
	}
}
