package process

import (
	"os"
	"strconv"
	"testing"
	"time"
)

// A child in a cgroup that is too small for it is killed by the kernel; the tree hears of it, and of no other's.
func TestKillsForWantOfMemory(t *testing.T) {
	k := openTestKernel(t)
	told := make(chan Kill, 8)
	if err := k.NotifyKills(func(Kill) { t.Error("the receiver before is told") }); err != nil {
		t.Fatal(err)
	}
	if err := k.NotifyKills(func(kill Kill) { told <- kill }); err != nil {
		t.Fatal(err)
	}
	group, limit := memoryCgroup(t)
	if err := os.WriteFile(limit, []byte(strconv.Itoa(32*mib)), 0); err != nil {
		t.Fatal(err)
	}
	glutton := []step{{Do: "enter", Path: group}, {Do: "hold", Bytes: 128 * mib}}
	// Of no tree.
	stranger := play(t, glutton...)
	stranger.next()
	if err := stranger.command.Wait(); err == nil {
		t.Fatal("a process of twice its cgroup's limit lives")
	}

	a := play(t, step{Do: "try", Steps: glutton}, step{Do: "pause"})
	tree := k.mustTrack(t, a)
	before := time.Now()
	a.next()
	a.paused()
	select {
	case kill := <-told:
		if kill.Tree != tree || kill.PID == a.PID || kill.PID <= 0 || kill.PID == stranger.PID {
			t.Errorf("%+v, want a child of %d in tree %d", kill, a.PID, tree)
		}
		if kill.AnonBytes < 24*mib || kill.AnonBytes > 40*mib || kill.ShmemBytes != 0 || kill.SwapBytes != 0 {
			t.Errorf("it held %+v, want nearly 32 MiB of anonymous memory", kill)
		}
		if kill.Name != "exe" {
			t.Errorf("name %q", kill.Name)
		}
		if kill.Time.Before(before.Add(-time.Millisecond)) || kill.Time.After(time.Now().Add(time.Millisecond)) {
			t.Errorf("at %v, want after %v", kill.Time, before)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("nothing is told of the kill")
	}
	select {
	case kill := <-told:
		t.Errorf("told once more: %+v", kill)
	default:
	}
}
