//go:build !386

package sock

import "golang.org/x/sys/unix"

func newSocketcall() (entry, error) { return nil, unix.ENOSYS }
