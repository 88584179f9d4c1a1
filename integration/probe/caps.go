package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"strings"
)

// caps prints the capability sets of the process, as the kernel writes them.
func caps(_ context.Context, out io.Writer, _ []string) error {
	f, err := os.Open("/proc/self/status")
	if err != nil {
		return err
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		if strings.HasPrefix(lines.Text(), "Cap") {
			fmt.Fprintln(out, lines.Text())
		}
	}
	return lines.Err()
}
