// Package python holds the Python client, so that one binary brings both sides of the socket.
//
// The package is standard library only and has no compiled parts: writing its files somewhere on PYTHONPATH installs it.
package python

import (
	"embed"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// Tests and caches are left out: the patterns name sources only.
//
//go:embed prov4ml/*.py prov4ml/py.typed prov4ml/*/*.py
var files embed.FS

// AliasFolder is the folder, below the one given to Write, that makes `import yprov4ml` mean this client. It belongs on
// PYTHONPATH only where the user asks for it: a yprov4ml that is installed behind it would be hidden.
var AliasFolder = filepath.Join("prov4ml", "alias")

// Files is the tree of the package: prov4ml/__init__.py and so on.
func Files() fs.FS { return files }

// Write puts the package into dir, which is to be on PYTHONPATH. Files are readable by everyone, since the training may
// run as another user than the agent; existing ones are replaced.
func Write(dir string) error {
	return fs.WalkDir(files, ".", func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return fmt.Errorf("read embedded client: %w", err)
		}
		target := filepath.Join(dir, filepath.FromSlash(path))
		if entry.IsDir() {
			if err := os.MkdirAll(target, 0o755); err != nil {
				return fmt.Errorf("make folder of the Python client: %w", err)
			}
			return nil
		}
		source, err := files.ReadFile(path)
		if err != nil {
			return fmt.Errorf("read embedded client: %w", err)
		}
		if err := os.WriteFile(target, source, 0o644); err != nil { // readable by the training's user
			return fmt.Errorf("write the Python client: %w", err)
		}
		return nil
	})
}
