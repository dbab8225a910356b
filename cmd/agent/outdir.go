package main

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"
)

// Files of a run's directory.
const (
	recordsFile = "records.db"
	tracesFile  = "traces.jsonl"
	metricsFile = "metrics.jsonl"
)

var notFileName = regexp.MustCompile(`[^A-Za-z0-9._-]+`)

// jobName is what a directory is named after: the first argument that is no interpreter and no flag, without its suffix.
func jobName(command []string) string {
	name := filepath.Base(command[0])
	for _, argument := range command[1:] {
		if strings.HasSuffix(argument, ".py") || strings.HasSuffix(argument, ".sh") {
			name = filepath.Base(argument)
			break
		}
	}
	name = strings.TrimSuffix(strings.TrimSuffix(name, ".py"), ".sh")
	if name = notFileName.ReplaceAllString(name, "-"); name == "" {
		return "run"
	}
	return name
}

// outDir is the run's directory.
type outDir struct {
	path string
	// made is the outermost directory that was not there before; empty = path was there.
	made string
	// before names what was in path already: another's, whatever becomes of the rest.
	before map[string]bool
}

// give makes the user own what the run has made.
func (d outDir) give(u *trainingUser) error {
	switch {
	case d.made != "":
		return u.give(d.made)
	case len(d.before) == 0:
		return u.give(d.path)
	}
	entries, err := os.ReadDir(d.path)
	if err != nil {
		return fmt.Errorf("read the run's directory: %w", err)
	}
	for _, entry := range entries {
		if d.before[entry.Name()] {
			continue
		}
		if err := u.give(filepath.Join(d.path, entry.Name())); err != nil {
			return err
		}
	}
	return nil
}

// makeOutDir makes the run's directory: path, or a new one under prov4ml-runs named by time and job.
func makeOutDir(path string, command []string, now time.Time) (outDir, error) {
	if path == "" {
		base := filepath.Join("prov4ml-runs", now.Format("20060102-150405")+"-"+jobName(command))
		path = base
		for n := 2; exists(path); n++ { // another run of the same second
			path = fmt.Sprintf("%s-%d", base, n)
		}
	}
	for _, file := range []string{recordsFile, tracesFile, metricsFile} {
		if exists(filepath.Join(path, file)) {
			return outDir{}, fmt.Errorf("--out %s holds a run already (%s); name another directory or remove it", path, file)
		}
	}
	dir := outDir{path: path, before: map[string]bool{}}
	for at := filepath.Clean(path); !exists(at); at = filepath.Dir(at) {
		dir.made = at
	}
	if err := os.MkdirAll(path, 0o755); err != nil {
		return outDir{}, fmt.Errorf("make the run's directory: %w", err)
	}
	entries, err := os.ReadDir(path)
	if err != nil {
		return outDir{}, fmt.Errorf("read the run's directory: %w", err)
	}
	for _, entry := range entries {
		dir.before[entry.Name()] = true
	}
	return dir, nil
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}
