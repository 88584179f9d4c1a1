package install

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// Step is one step of a command, told when it has ended.
type Step struct {
	Name   string // "image", "runtime"
	Detail string // what was done
	Err    error  // why it was not; the command then takes its steps back
	Undone bool   // it was done, and has been taken back
}

// Progress is told of every step. It is called from one goroutine.
type Progress func(Step)

// steps runs the steps of a command and remembers how to take them back.
type steps struct {
	progress Progress
	undo     []undoing
}

type undoing struct {
	name string
	do   func(context.Context) error
}

func newSteps(progress Progress) *steps {
	if progress == nil {
		progress = func(Step) {}
	}
	return &steps{progress: progress}
}

// stepTimeout bounds a step. The longest carries some 25 MB to an engine that
// may be at the other end of a slow line.
const stepTimeout = 10 * time.Minute

// do runs one step.
func (s *steps) do(ctx context.Context, name string, step func(context.Context) (detail string, err error)) error {
	ctx, cancel := context.WithTimeout(ctx, stepTimeout)
	defer cancel()
	detail, err := step(ctx)
	s.progress(Step{Name: name, Detail: detail, Err: err})
	return err
}

// back remembers how to take the present step back. It is called before the
// step changes anything, so undoing must bear a step half done.
func (s *steps) back(name string, do func(context.Context) error) {
	s.undo = append(s.undo, undoing{name, do})
}

// rollBack takes the steps back, the latest first, even if ctx has ended, and
// adds to cause what could not be taken back.
func (s *steps) rollBack(ctx context.Context, cause error) error {
	problems := []error{cause}
	for i := len(s.undo) - 1; i >= 0; i-- {
		// Some take as long as the steps did.
		bounded, cancel := context.WithTimeout(context.WithoutCancel(ctx), stepTimeout)
		err := s.undo[i].do(bounded)
		cancel()
		s.progress(Step{Name: s.undo[i].name, Err: err, Undone: true})
		if err != nil {
			problems = append(problems, fmt.Errorf("taking back %s: %w", s.undo[i].name, err))
		}
	}
	return errors.Join(problems...)
}
