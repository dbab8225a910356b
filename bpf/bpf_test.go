package bpf

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// An object that Layout forgets would be taken over from an agent that has another one.
func TestLayoutNamesEveryObject(t *testing.T) {
	objects, err := filepath.Glob("*_bpfel.o")
	if err != nil {
		t.Fatal(err)
	}
	source, err := os.ReadFile("bpf.go")
	if err != nil {
		t.Fatal(err)
	}
	for _, object := range objects {
		subject := strings.TrimSuffix(object, "_bpfel.o")
		// The file's name is in lower case throughout.
		if name := "_" + subject + "bytes"; !strings.Contains(strings.ToLower(string(source)), name) {
			t.Errorf("%s is not in Layout: %s", object, name)
		}
	}
	if len(objects) == 0 {
		t.Error("no objects")
	}
	if first := Layout(); first == [32]byte{} || Layout() != first {
		t.Error("no layout")
	}
}
