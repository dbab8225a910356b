// Package bpf holds the kernel side of the process probe, compiled: one object file for each subject, from the C source of
// the same name beside it, and the Go types of what the maps hold. README.md says which program hangs on which event and
// which map is whose.
//
// Each source is compiled twice: the objects named Early are for kernels without bpf_loop, 5.10 to 5.16.
//
// The objects are made by clang 19 and committed, so that building the agent needs Go alone.
package bpf

import "crypto/sha256"

//go:generate go tool bpf2go -cc clang-19 -strip llvm-strip-19 -target bpfel -cflags "-O2 -g -Wall -Werror -mcpu=v3" -type usage -type sums -type histograms -type device -type loss -type proc Lineage lineage.bpf.c
//go:generate go tool bpf2go -cc clang-19 -strip llvm-strip-19 -target bpfel -cflags "-O2 -g -Wall -Werror -mcpu=v3" -no-global-types -type adopt_mode -type adoption Adopt adopt.bpf.c
//go:generate go tool bpf2go -cc clang-19 -strip llvm-strip-19 -target bpfel -cflags "-O2 -g -Wall -Werror -mcpu=v3" -no-global-types -type live_question -type live -type live_process Live live.bpf.c
//go:generate go tool bpf2go -cc clang-19 -strip llvm-strip-19 -target bpfel -cflags "-O2 -g -Wall -Werror -mcpu=v3" -no-global-types -type swept -type inode_owner Dirty dirty.bpf.c
//go:generate go tool bpf2go -cc clang-19 -strip llvm-strip-19 -target bpfel -cflags "-O2 -g -Wall -Werror -mcpu=v3" -no-global-types -type write_class Block block.bpf.c
//go:generate go tool bpf2go -cc clang-19 -strip llvm-strip-19 -target bpfel -cflags "-O2 -g -Wall -Werror -mcpu=v3" -no-global-types -type kill Oom oom.bpf.c
//go:generate go tool bpf2go -cc clang-19 -strip llvm-strip-19 -target bpfel -cflags "-O2 -g -Wall -Werror -mcpu=v3" -no-global-types Wait wait.bpf.c
//go:generate go tool bpf2go -cc clang-19 -strip llvm-strip-19 -target bpfel -cflags "-O2 -g -Wall -Werror -mcpu=v3" -no-global-types Latency latency.bpf.c
//go:generate go tool bpf2go -cc clang-19 -strip llvm-strip-19 -target bpfel -cflags "-O2 -g -Wall -Werror -mcpu=v3" -no-global-types Reclaim reclaim.bpf.c
//go:generate go tool bpf2go -cc clang-19 -strip llvm-strip-19 -target bpfel -cflags "-O2 -g -Wall -Werror -mcpu=v3 -DEARLY" -no-global-types LineageEarly lineage.bpf.c
//go:generate go tool bpf2go -cc clang-19 -strip llvm-strip-19 -target bpfel -cflags "-O2 -g -Wall -Werror -mcpu=v3 -DEARLY" -no-global-types AdoptEarly adopt.bpf.c
//go:generate go tool bpf2go -cc clang-19 -strip llvm-strip-19 -target bpfel -cflags "-O2 -g -Wall -Werror -mcpu=v3 -DEARLY" -no-global-types LiveEarly live.bpf.c
//go:generate go tool bpf2go -cc clang-19 -strip llvm-strip-19 -target bpfel -cflags "-O2 -g -Wall -Werror -mcpu=v3 -DEARLY" -no-global-types DirtyEarly dirty.bpf.c
//go:generate go tool bpf2go -cc clang-19 -strip llvm-strip-19 -target bpfel -cflags "-O2 -g -Wall -Werror -mcpu=v3 -DEARLY" -no-global-types BlockEarly block.bpf.c
//go:generate go tool bpf2go -cc clang-19 -strip llvm-strip-19 -target bpfel -cflags "-O2 -g -Wall -Werror -mcpu=v3 -DEARLY" -no-global-types LatencyEarly latency.bpf.c
//go:generate go tool bpf2go -cc clang-19 -strip llvm-strip-19 -target bpfel -cflags "-O2 -g -Wall -Werror -mcpu=v3 -DEARLY" -no-global-types ReclaimEarly reclaim.bpf.c
//go:generate go tool bpf2go -cc clang-19 -strip llvm-strip-19 -target bpfel -cflags "-O2 -g -Wall -Werror -mcpu=v3 -DEARLY" -no-global-types OomEarly oom.bpf.c
//go:generate go tool bpf2go -cc clang-19 -strip llvm-strip-19 -target bpfel -cflags "-O2 -g -Wall -Werror -mcpu=v3 -DEARLY" -no-global-types WaitEarly wait.bpf.c

// Layout names what the objects do and how they and their maps are laid out: two agents with the same one can use each other's.
func Layout() [sha256.Size]byte {
	all := sha256.New()
	for _, object := range [...][]byte{
		_AdoptBytes, _BlockBytes, _DirtyBytes, _LatencyBytes, _LineageBytes, _LiveBytes, _OomBytes, _ReclaimBytes, _WaitBytes,
		_AdoptEarlyBytes, _BlockEarlyBytes, _DirtyEarlyBytes, _LatencyEarlyBytes, _LineageEarlyBytes, _LiveEarlyBytes, _OomEarlyBytes,
		_ReclaimEarlyBytes, _WaitEarlyBytes,
	} {
		all.Write(object)
	}
	return [sha256.Size]byte(all.Sum(nil))
}
