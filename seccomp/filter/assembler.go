package filter

import "syscall"

// Where things are in the kernel's struct seccomp_data, on little-endian machines.
const (
	offsetNumber = 0
	offsetArch   = 4
)

// argument is the lower half of an argument; the kernel looks at no more of an int.
func argument(n uint32) uint32 { return 16 + 8*n }

// assembler writes a program with jumps to labels ahead.
type assembler struct {
	code   []syscall.SockFilter
	labels map[string]int
	jumps  []jump
}

// jump is an instruction whose target is not known yet.
type jump struct {
	at     int
	target string
}

func (a *assembler) add(code int, k uint32) {
	a.code = append(a.code, syscall.SockFilter{Code: uint16(code), K: k})
}

func (a *assembler) label(name string) { a.labels[name] = len(a.code) }

func (a *assembler) load(offset uint32) { a.add(syscall.BPF_LD|syscall.BPF_W|syscall.BPF_ABS, offset) }

func (a *assembler) and(mask uint32) { a.add(syscall.BPF_ALU|syscall.BPF_AND|syscall.BPF_K, mask) }

func (a *assembler) ret(answer uint32) { a.add(syscall.BPF_RET|syscall.BPF_K, answer) }

// jumpIf jumps if what was loaded equals k. Conditional jumps reach 255
// instructions ahead, more than there are.
func (a *assembler) jumpIf(k uint32, target string) {
	a.jumps = append(a.jumps, jump{len(a.code), target})
	a.add(syscall.BPF_JMP|syscall.BPF_JEQ|syscall.BPF_K, k)
}

func (a *assembler) finish() []syscall.SockFilter {
	for _, j := range a.jumps {
		a.code[j.at].Jt = uint8(a.labels[j.target] - j.at - 1)
	}
	return a.code
}
