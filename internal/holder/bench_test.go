package holder_test

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// calls is how many are timed in one measurement.
const calls = 2000

// measure tells the least and the median time of a call on sockets of its own, in
// nanoseconds.
func measure(call, to string) (string, error) {
	sa, times := address(to), make([]int, 0, calls)
	for range calls {
		family, kind, _ := kind("udp4")
		fd, err := unix.Socket(family, kind, 0)
		if err != nil {
			return "", err
		}
		began := time.Now()
		switch call {
		case "bind":
			err = unix.Bind(fd, sa)
		case "connect":
			err = unix.Connect(fd, sa)
		case "sendto":
			err = unix.Sendto(fd, []byte("x"), 0, sa)
		}
		times = append(times, int(time.Since(began)))
		_ = unix.Close(fd)
		if err != nil {
			return "", err
		}
	}
	slices.Sort(times)
	return fmt.Sprint(times[0], " ", times[calls/2]), nil
}

// BenchmarkCalls compares calls that are answered with those of a process without the
// filter: "The calls cost 10 to 25 us each".
func BenchmarkCalls(b *testing.B) {
	bed := newBed(b)
	plain, supervised := bed.process(1, "plain"), bed.container(2)
	for _, call := range []string{"bind 0.0.0.0:0", "connect 10.77.0.9:9", "sendto 10.77.0.9:9"} {
		for name, x := range map[string]*box{"plain": plain, "supervised": supervised} {
			b.Run(strings.Fields(call)[0]+"/"+name, func(b *testing.B) {
				for b.Loop() {
					least, median, _ := strings.Cut(x.do("time "+call), " ")
					for unit, text := range map[string]string{"ns-min": least, "ns-median": median} {
						n, err := strconv.ParseFloat(text, 64)
						if err != nil {
							b.Fatal(err)
						}
						b.ReportMetric(n, unit)
					}
				}
			})
		}
	}
}
