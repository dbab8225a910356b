package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/prov4ml/agent/report"
	"github.com/prov4ml/agent/store"
)

type reportCommand struct {
	Dir string `arg:"" help:"Directory of a run, with its records.db." type:"existingdir"`
}

// Run prints the summary of the run in Dir.
func (c reportCommand) Run(s streams) error {
	return printSummary(context.Background(), s.out, c.Dir)
}

// printSummary prints what the records of a run's directory say, and which files are there.
func printSummary(ctx context.Context, out io.Writer, dir string) (err error) {
	path := filepath.Join(dir, recordsFile)
	if _, err := os.Stat(path); err != nil {
		return fmt.Errorf("%s holds no run: %w", dir, err)
	}
	records, err := store.OpenArchive(ctx, path)
	if err != nil {
		return fmt.Errorf("open the record store: %w", err)
	}
	defer func() {
		if e := records.Close(); err == nil && e != nil {
			err = e
		}
	}()
	var files []string
	for _, name := range []string{recordsFile, tracesFile, metricsFile} {
		if file := filepath.Join(dir, name); exists(file) {
			files = append(files, file)
		}
	}
	return report.Summary(out, records.Records(ctx), files...)
}
