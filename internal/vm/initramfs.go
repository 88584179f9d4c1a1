package vm

import (
	"bytes"
	"debug/elf"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/particle-net/particle/internal/fault"
)

// job is what init is to do.
type job struct {
	Modules []string // in the initramfs, in the order of loading
	Tree    string   // the machine's directory that /lib/modules is to be
	Scratch []string // directories that are to be in memory
	Argv    []string
	Env     []string
	Dir     string
}

const jobFile = "/job.json"

// rootModules is what it takes to reach the machine's files and ports.
var rootModules = []string{"virtio_pci", "virtio_console", "9pnet_virtio", "9p", "overlay"}

// initramfs is an archive with init, the job, and the modules of the root.
func initramfs(k kernel, self string, j job) ([]byte, error) {
	program, err := os.ReadFile(self)
	if err != nil {
		return nil, err
	}
	if err := checkStatic(self, program); err != nil {
		return nil, err
	}
	release := filepath.Join(k.modules(), k.release)
	files, err := moduleFiles(release, rootModules)
	if err != nil {
		return nil, err
	}
	var archive cpio
	for _, dir := range []string{"proc", "sys", "dev", "modules", "machine", "memory", "root"} {
		archive.dir(dir)
	}
	for _, file := range files {
		raw, err := os.ReadFile(filepath.Join(release, file))
		if err != nil {
			return nil, err
		}
		name := "modules/" + filepath.Base(file)
		archive.file(name, 0o644, raw)
		j.Modules = append(j.Modules, "/"+name)
	}
	text, err := json.Marshal(j)
	if err != nil {
		return nil, err
	}
	archive.file(jobFile[1:], 0o600, text)
	archive.file("init", 0o755, program)
	return archive.bytes(), nil
}

// checkStatic says whether a program can run where there are no libraries.
func checkStatic(name string, program []byte) error {
	file, err := elf.NewFile(bytes.NewReader(program))
	if err != nil {
		return err
	}
	for _, p := range file.Progs {
		if p.Type == elf.PT_INTERP {
			return fault.New("make initramfs", name, "the program is linked dynamically", "build it with CGO_ENABLED=0")
		}
	}
	return nil
}

// moduleFiles are the files of modules and of what they depend on, below the
// directory of their release, in the order of loading. What is built into the
// kernel has no file.
func moduleFiles(release string, names []string) ([]string, error) {
	raw, err := os.ReadFile(filepath.Join(release, "modules.dep"))
	if err != nil {
		return nil, err
	}
	builtin, err := os.ReadFile(filepath.Join(release, "modules.builtin"))
	if err != nil {
		return nil, err
	}
	needs := map[string][]string{} // a module's own file and those it needs, last first
	for line := range strings.Lines(string(raw)) {
		file, deps, _ := strings.Cut(strings.TrimSpace(line), ":")
		needs[moduleName(file)] = append([]string{file}, strings.Fields(deps)...)
	}
	for _, file := range strings.Fields(string(builtin)) {
		needs[moduleName(file)] = nil
	}
	var files []string
	for _, name := range names {
		of, ok := needs[name]
		if !ok {
			return nil, fault.New("find module", name, "the kernel has none", "choose another kernel")
		}
		for _, file := range slices.Backward(of) {
			if !slices.Contains(files, file) {
				files = append(files, file)
			}
		}
	}
	return files, nil
}

// moduleName is the name of the module in a file: kernel/net/9p/9pnet.ko.xz.
func moduleName(file string) string {
	name, _, _ := strings.Cut(filepath.Base(file), ".")
	return strings.ReplaceAll(name, "-", "_")
}

// cpio writes an archive as the kernel reads it
// (Documentation/driver-api/early-userspace/buffer-format.rst).
type cpio struct {
	buf   bytes.Buffer
	inode int
}

func (c *cpio) dir(name string) { c.entry(name, 0o040755, nil) }

func (c *cpio) file(name string, perm int, data []byte) { c.entry(name, 0o100000|perm, data) }

func (c *cpio) bytes() []byte {
	c.entry("TRAILER!!!", 0, nil)
	return c.buf.Bytes()
}

func (c *cpio) entry(name string, mode int, data []byte) {
	c.inode++
	const links = 1
	c.buf.WriteString("070701")
	for _, field := range []int{c.inode, mode, 0, 0, links, 0, len(data), 0, 0, 0, 0, len(name) + 1, 0} {
		fmt.Fprintf(&c.buf, "%08X", field)
	}
	c.buf.WriteString(name + "\x00")
	c.pad()
	c.buf.Write(data)
	c.pad()
}

// pad fills up to a multiple of four.
func (c *cpio) pad() { c.buf.Write(make([]byte, -c.buf.Len()&3)) }
