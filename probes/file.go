package probes

import (
	"errors"
	"io"
	"os"
)

// File reads the beginning of a small file of procfs or cgroupfs again and again. It stays open, since opening and closing cost as
// much as the reading, twice with cold caches; the kernel makes the text anew for each read from offset 0. One goroutine at a time
// uses it.
type File struct {
	path string
	file *os.File
}

// NewFile opens nothing yet.
func NewFile(path string) *File { return &File{path: path} }

// Read reads into buffer and returns what it has read. It opens the file if it is not open, and closes it after an error.
func (f *File) Read(buffer []byte) ([]byte, error) {
	if f.file == nil {
		file, err := os.Open(f.path)
		if err != nil {
			return nil, err
		}
		f.file = file
	}
	n, err := f.file.ReadAt(buffer, 0)
	if err != nil && !errors.Is(err, io.EOF) {
		f.Close()
		return nil, err
	}
	return buffer[:n], nil
}

// Close closes the file; the next Read opens it again.
func (f *File) Close() {
	if f.file != nil {
		_ = f.file.Close() // it was only read
		f.file = nil
	}
}
