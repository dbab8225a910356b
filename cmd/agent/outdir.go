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

// makeOutDir makes the run's directory: path, or a new one under prov4ml-runs named by time and job. made is the outermost
// directory that was not there before, dir itself if that was there: what to give to the user.
func makeOutDir(path string, command []string, now time.Time) (dir, made string, err error) {
	if path == "" {
		base := filepath.Join("prov4ml-runs", now.Format("20060102-150405")+"-"+jobName(command))
		path = base
		for n := 2; exists(path); n++ { // another run of the same second
			path = fmt.Sprintf("%s-%d", base, n)
		}
	}
	for _, file := range []string{recordsFile, tracesFile, metricsFile} {
		if exists(filepath.Join(path, file)) {
			return "", "", fmt.Errorf("--out %s holds a run already (%s); name another directory or remove it", path, file)
		}
	}
	made = path
	for at := filepath.Clean(path); !exists(at); at = filepath.Dir(at) {
		made = at
	}
	if err := os.MkdirAll(path, 0o755); err != nil {
		return "", "", fmt.Errorf("make the run's directory: %w", err)
	}
	return path, made, nil
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}
