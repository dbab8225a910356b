package store

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// networkFileSystems are those on which SQLite's WAL mode cannot work or is known not to: its connections share memory
// through the file beside the log, and its locks must be the kernel's own. The magic numbers are statfs(2)'s.
func networkFileSystem(magic uint32) string {
	switch magic {
	case unix.NFS_SUPER_MAGIC:
		return "NFS"
	case 0x0BD00BD0: // Lustre's LL_SUPER_MAGIC, not in the kernel's tree
		return "Lustre"
	case 0x47504653: // "GPFS", IBM Storage Scale
		return "GPFS"
	case unix.FUSE_SUPER_MAGIC: // also virtiofs, and sshfs, s3fs, gcsfuse ...
		return "FUSE"
	case unix.CIFS_SUPER_MAGIC, unix.SMB2_SUPER_MAGIC, unix.SMB_SUPER_MAGIC:
		return "SMB/CIFS"
	case unix.CEPH_SUPER_MAGIC:
		return "CephFS"
	case unix.AFS_SUPER_MAGIC, unix.AFS_FS_MAGIC:
		return "AFS"
	case unix.CODA_SUPER_MAGIC:
		return "Coda"
	case unix.V9FS_MAGIC:
		return "9P"
	case unix.OCFS2_SUPER_MAGIC:
		return "OCFS2"
	case 0x01161970: // GFS2_MAGIC
		return "GFS2"
	case 0x19830326: // BeeGFS
		return "BeeGFS"
	case 0xAAD7AAEA: // PanFS
		return "PanFS"
	case 0x786F4256: // VBOXSF_SUPER_MAGIC
		return "VirtualBox shared folder"
	}
	return ""
}

// NetworkFileSystem names the network file system that dir is on, or will be on when it is made; empty = a local one.
func NetworkFileSystem(dir string) (string, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return "", fmt.Errorf("find the file system: %w", err)
	}
	for {
		var st unix.Statfs_t
		err := unix.Statfs(dir, &st)
		switch {
		case err == nil:
			return networkFileSystem(uint32(st.Type)), nil
		case errors.Is(err, unix.EINTR):
		case errors.Is(err, unix.ENOENT) && dir != filepath.Dir(dir):
			dir = filepath.Dir(dir)
		default:
			return "", fmt.Errorf("find the file system of %s: %w", dir, err)
		}
	}
}

// Place is where a run's live files lie.
type Place struct {
	// Dir is what the user asked for.
	Dir string
	// Live is the directory for the record store and the socket: Dir, or a new local one.
	Live string
	// FileSystem names what keeps Live from being Dir; empty = nothing.
	FileSystem string
}

// FindPlace makes dir, and where it is on a network file system a private local directory for the live store: in
// $SLURM_TMPDIR, $XDG_RUNTIME_DIR or the temporary directory, the first that is local and can be written.
func FindPlace(dir string) (Place, error) {
	return findPlace(dir, NetworkFileSystem)
}

func findPlace(dir string, network func(string) (string, error)) (Place, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return Place{}, fmt.Errorf("make %s: %w", dir, err)
	}
	p := Place{Dir: dir, Live: dir}
	var err error
	if p.FileSystem, err = network(dir); err != nil || p.FileSystem == "" {
		return p, err
	}
	var errs []error
	for _, parent := range []string{os.Getenv("SLURM_TMPDIR"), os.Getenv("XDG_RUNTIME_DIR"), os.TempDir(), "/tmp"} {
		if parent == "" {
			continue
		}
		name, err := network(parent)
		if err == nil && name != "" {
			err = fmt.Errorf("%s is on %s", parent, name)
		}
		if err == nil {
			p.Live, err = os.MkdirTemp(parent, "prov4ml-")
		}
		if err == nil {
			return p, nil
		}
		errs = append(errs, err)
	}
	return Place{}, fmt.Errorf("%s is on %s, where the record store cannot live, and no local directory serves; set SLURM_TMPDIR to one: %w",
		dir, p.FileSystem, errors.Join(errs...))
}

// Note is the line for the user; empty when Live is Dir.
func (p Place) Note() string {
	if p.FileSystem == "" {
		return ""
	}
	return fmt.Sprintf("%s is on %s, so the record store is kept in %s and copied at the end", p.Dir, p.FileSystem, p.Live)
}

// Finish copies the closed store's file to Dir and removes Live, unless they are the same. After an error Live still holds
// the records.
func (p Place) Finish(name string) error {
	if p.Live == p.Dir {
		return nil
	}
	if err := copyFile(filepath.Join(p.Live, name), filepath.Join(p.Dir, name), 0o644); err != nil {
		return fmt.Errorf("copy the records to %s (they are in %s): %w", p.Dir, p.Live, err)
	}
	if err := os.RemoveAll(p.Live); err != nil {
		return fmt.Errorf("remove the local record store: %w", err)
	}
	return nil
}

// copyFile copies a file so that a part of it is never taken for the whole.
func copyFile(from, to string, perm fs.FileMode) (err error) {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer func() { _ = in.Close() }()
	part := to + ".part"
	out, err := os.OpenFile(part, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, perm)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			if e := os.Remove(part); e != nil && !errors.Is(e, fs.ErrNotExist) {
				err = errors.Join(err, e)
			}
		}
	}()
	if _, err := io.Copy(out, in); err != nil {
		return errors.Join(err, out.Close())
	}
	if err := out.Sync(); err != nil {
		return errors.Join(err, out.Close())
	}
	if err := out.Close(); err != nil {
		return err
	}
	return os.Rename(part, to)
}
