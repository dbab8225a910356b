package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

// trainingUser is the user CMD runs as when that is not the agent's own: eBPF needs rights that training should not have.
type trainingUser struct {
	uid, gid uint32
	groups   []uint32
	name     string
	home     string
}

// findTrainingUser returns the user named by --user, else the one who called sudo, else nil: CMD runs as the agent does.
func findTrainingUser(flag string) (*trainingUser, error) {
	var found *user.User
	var err error
	switch sudoUID := os.Getenv("SUDO_UID"); {
	case flag != "":
		if found, err = user.Lookup(flag); err != nil {
			if found, err = user.LookupId(flag); err != nil {
				return nil, fmt.Errorf("--user %s: no user has this name or id", flag)
			}
		}
	case sudoUID != "" && sudoUID != "0" && os.Geteuid() == 0:
		if found, err = user.LookupId(sudoUID); err != nil {
			return nil, fmt.Errorf("SUDO_UID=%s: no such user; name one with --user", sudoUID)
		}
	default:
		return nil, nil
	}
	uid, err := strconv.ParseUint(found.Uid, 10, 32)
	if err != nil {
		return nil, fmt.Errorf("user %s: uid %q: %w", found.Username, found.Uid, err)
	}
	gid, err := strconv.ParseUint(found.Gid, 10, 32)
	if err != nil {
		return nil, fmt.Errorf("user %s: gid %q: %w", found.Username, found.Gid, err)
	}
	if int(uid) == os.Geteuid() {
		return nil, nil
	}
	if os.Geteuid() != 0 {
		return nil, fmt.Errorf("--user %s: only root can run a command as another user", flag)
	}
	ids, err := found.GroupIds()
	if err != nil {
		return nil, fmt.Errorf("groups of user %s: %w", found.Username, err)
	}
	u := &trainingUser{uid: uint32(uid), gid: uint32(gid), name: found.Username, home: found.HomeDir}
	for _, id := range ids {
		if g, err := strconv.ParseUint(id, 10, 32); err == nil {
			u.groups = append(u.groups, uint32(g))
		}
	}
	return u, nil
}

// credential is what the command's process becomes; nil for the agent's own user.
func (u *trainingUser) credential() *syscall.Credential {
	if u == nil {
		return nil
	}
	return &syscall.Credential{Uid: u.uid, Gid: u.gid, Groups: u.groups}
}

// give makes the user own path and everything under it.
func (u *trainingUser) give(path string) error {
	if u == nil {
		return nil
	}
	return filepath.WalkDir(path, func(p string, _ os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if err := os.Lchown(p, int(u.uid), int(u.gid)); err != nil {
			return fmt.Errorf("give it to %s: %w", u.name, err)
		}
		return nil
	})
}

// environment turns the agent's environment into the user's. sudo has replaced PATH and SHELL and dropped most variables
// (env_reset), so those that sudo itself was started with come back where they are missing, and these two always.
func (u *trainingUser) environment(own []string) []string {
	if u == nil {
		return own
	}
	merged := map[string]string{}
	var order []string
	set := func(key, value string, replace bool) {
		_, known := merged[key]
		if !known {
			order = append(order, key)
		}
		if !known || replace {
			merged[key] = value
		}
	}
	for _, entry := range own {
		if key, value, ok := strings.Cut(entry, "="); ok {
			set(key, value, true)
		}
	}
	for _, entry := range sudoEnvironment("/proc", os.Getppid()) {
		if key, value, ok := strings.Cut(entry, "="); ok {
			set(key, value, key == "PATH" || key == "SHELL")
		}
	}
	set("HOME", u.home, true)
	set("USER", u.name, true)
	set("LOGNAME", u.name, true)
	environment := make([]string, 0, len(order))
	for _, key := range order {
		environment = append(environment, key+"="+merged[key])
	}
	return environment
}

// sudoEnvironment is what sudo was started with, nil when the agent was not started by sudo. With use_pty sudo's monitor stands
// between, also named sudo: the outermost of the row is taken.
func sudoEnvironment(proc string, pid int) []string {
	var environ []byte
	for range 3 {
		dir := filepath.Join(proc, strconv.Itoa(pid))
		comm, err := os.ReadFile(filepath.Join(dir, "comm"))
		if err != nil || string(bytes.TrimSpace(comm)) != "sudo" {
			break
		}
		if data, err := os.ReadFile(filepath.Join(dir, "environ")); err == nil {
			environ = data
		}
		if pid, err = parentOf(dir); err != nil {
			break
		}
	}
	if len(environ) == 0 {
		return nil
	}
	return strings.Split(strings.TrimRight(string(environ), "\x00"), "\x00")
}

var errNoParent = errors.New("no parent in stat")

// parentOf reads field 4 of stat; the command name before it may hold any character.
func parentOf(dir string) (int, error) {
	stat, err := os.ReadFile(filepath.Join(dir, "stat"))
	if err != nil {
		return 0, err
	}
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	if len(fields) < 2 {
		return 0, errNoParent
	}
	return strconv.Atoi(fields[1])
}
