package python

import (
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// Every source of the package is embedded, and nothing else is.
func TestFilesAreThePackage(t *testing.T) {
	var onDisk []string
	err := filepath.WalkDir("prov4ml", func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if entry.Name() == "__pycache__" {
			return filepath.SkipDir
		}
		if !entry.IsDir() {
			onDisk = append(onDisk, path)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	var embedded []string
	err = fs.WalkDir(Files(), ".", func(path string, entry fs.DirEntry, err error) error {
		if err == nil && !entry.IsDir() {
			embedded = append(embedded, path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(onDisk, embedded); diff != "" {
		t.Errorf("files on disk and embedded (-disk +embedded):\n%s", diff)
	}
}

func TestWriteMakesAnImportablePackage(t *testing.T) {
	dir := t.TempDir()
	for range 2 { // also over an older copy
		if err := Write(dir); err != nil {
			t.Fatal(err)
		}
	}
	for _, path := range []string{"prov4ml/__init__.py", "prov4ml/py.typed", "prov4ml/alias/yprov4ml.py"} {
		info, err := os.Stat(filepath.Join(dir, path))
		if err != nil {
			t.Fatal(err)
		}
		if info.Mode().Perm()&0o444 != 0o444 {
			t.Errorf("%s has mode %v: another user's training cannot read it", path, info.Mode())
		}
	}
	cmd := exec.Command("python3", "-c", "import prov4ml, yprov4ml; print(prov4ml.__file__, yprov4ml.__name__)")
	cmd.Dir = t.TempDir()
	cmd.Env = append(os.Environ(),
		"PYTHONPATH="+dir+":"+filepath.Join(dir, AliasFolder),
		"PYTHONDONTWRITEBYTECODE=1",
		"PROV4ML_AGENT_SOCKET="+filepath.Join(dir, "none.sock"))
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	want := filepath.Join(dir, "prov4ml", "__init__.py") + " prov4ml.yprov4ml"
	if got := strings.TrimSpace(string(out)); got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}
