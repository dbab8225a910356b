package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// ramDisk is an ext4 file system on a loop device on a file in memory: the fastest device that has requests, so that what the
// programs cost is a large share.
type ramDisk struct {
	memory, device, directory string
	mounted                   bool
}

func mountRAM(ctx context.Context, work string) (_ *ramDisk, err error) {
	r := &ramDisk{memory: filepath.Join(work, "memory"), directory: filepath.Join(work, "ram")}
	defer func() {
		if err != nil {
			err = errors.Join(err, r.unmount())
		}
	}()
	for _, directory := range []string{r.memory, r.directory} {
		if err := os.Mkdir(directory, 0o700); err != nil {
			return nil, err
		}
	}
	if err := unix.Mount("tmpfs", r.memory, "tmpfs", 0, fmt.Sprintf("size=%d", ramBytes+ramBytes/8)); err != nil {
		return nil, fmt.Errorf("mount memory: %w", err)
	}
	image := filepath.Join(r.memory, "image")
	if err := os.WriteFile(image, nil, 0o600); err != nil {
		return nil, err
	}
	if err := os.Truncate(image, ramBytes); err != nil {
		return nil, err
	}
	device, err := output(ctx, "losetup", "--find", "--show", image)
	if err != nil {
		return nil, err
	}
	r.device = strings.TrimSpace(device)
	if _, err := output(ctx, "mkfs.ext4", "-q", r.device); err != nil {
		return nil, err
	}
	if err := unix.Mount(r.device, r.directory, "ext4", 0, ""); err != nil {
		return nil, fmt.Errorf("mount %s: %w", r.device, err)
	}
	r.mounted = true
	return r, nil
}

func (r *ramDisk) unmount() error {
	var err error
	if r.mounted {
		err = unix.Unmount(r.directory, 0)
	}
	if r.device != "" {
		_, e := output(context.Background(), "losetup", "--detach", r.device)
		err = errors.Join(err, e)
	}
	// Not mounted when making it failed early.
	if e := unix.Unmount(r.memory, unix.MNT_DETACH); e != nil && !errors.Is(e, unix.EINVAL) && !errors.Is(e, unix.ENOENT) {
		err = errors.Join(err, e)
	}
	return err
}

// output runs a command and returns what it prints.
func output(ctx context.Context, name string, arguments ...string) (string, error) {
	out, err := exec.CommandContext(ctx, name, arguments...).CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("%s %s: %w: %s", name, strings.Join(arguments, " "), err, out)
	}
	return string(out), nil
}
