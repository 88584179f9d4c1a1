package install

import (
	"archive/tar"
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/particle-net/particle/internal/fault"
)

// programs are what the image consists of, beside the executable that runs.
func programs() []string { return []string{"particle", "particle-docker-plugin", "particle-runtime"} }

// machines are the ELF machines of the architectures Go names so.
func machine(arch string) elf.Machine {
	switch arch {
	case "amd64":
		return elf.EM_X86_64
	case "arm64":
		return elf.EM_AARCH64
	case "arm":
		return elf.EM_ARM
	case "386":
		return elf.EM_386
	case "ppc64le":
		return elf.EM_PPC64
	case "s390x":
		return elf.EM_S390
	case "riscv64":
		return elf.EM_RISCV
	default:
		return elf.EM_NONE
	}
}

// sourceDir gives the directory that holds the programs: dir, or that of the
// executable that runs.
func sourceDir(dir string) (string, error) {
	if dir != "" {
		return dir, nil
	}
	self, err := os.Executable()
	if err == nil {
		self, err = filepath.EvalSymlinks(self)
	}
	if err != nil {
		return "", &fault.Error{Op: "find the programs", Err: err, Fix: "name their directory with --from"}
	}
	return filepath.Dir(self), nil
}

// checkProgram makes sure that a program can run in an image without a C
// library, on the engine's processor.
func checkProgram(path, arch string) error {
	file, err := elf.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return fault.New("find program", path, "it is not there", "name the directory of the release with --from")
	}
	if err != nil {
		return &fault.Error{Op: "read program", On: path, Err: err, Fix: "unpack the release again"}
	}
	defer file.Close()
	if want := machine(arch); want != elf.EM_NONE && file.Machine != want {
		return fault.New("check program", path, fmt.Sprintf("it is for %v, and the engine's processor is %s", file.Machine, arch),
			"use the release for "+arch)
	}
	for _, segment := range file.Progs {
		if segment.Type == elf.PT_INTERP {
			return fault.New("check program", path, "it is linked dynamically, and the image has no C library",
				"build it with CGO_ENABLED=0")
		}
	}
	return nil
}

// addFile writes a file from disk to an archive.
func addFile(w *tar.Writer, name, path string) error {
	file, err := os.Open(path)
	if err != nil {
		return err
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return err
	}
	if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o755, Size: info.Size()}); err != nil {
		return err
	}
	_, err = io.Copy(w, file)
	return err
}

func addText(w *tar.Writer, name string, text []byte) error {
	if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: int64(len(text))}); err != nil {
		return err
	}
	_, err := w.Write(text)
	return err
}

// archive streams what write puts into a tar archive.
func archive(write func(*tar.Writer) error) io.ReadCloser {
	r, w := io.Pipe()
	go func() {
		t := tar.NewWriter(w)
		err := write(t)
		if err == nil {
			err = t.Close()
		}
		w.CloseWithError(err)
	}()
	return r
}
