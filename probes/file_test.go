package probes

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
)

func TestFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "stat")
	f := NewFile(path)
	defer f.Close()
	var buffer [8]byte
	if _, err := f.Read(buffer[:]); !errors.Is(err, fs.ErrNotExist) {
		t.Fatalf("a file that is not there: %v", err)
	}
	for text, want := range map[string]string{"one": "one", "longer than that": "longer t", "": ""} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if got, err := f.Read(buffer[:]); err != nil || string(got) != want {
			t.Errorf("got %q, %v; want %q", got, err, want)
		}
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if _, err := f.Read(buffer[:]); err != nil {
		t.Errorf("an open file that was removed: %v", err)
	}
	f.Close()
	if _, err := f.Read(buffer[:]); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("after closing: %v", err)
	}
}
