// SPDX-License-Identifier: Apache-2.0

package main

import "context"

func runSoak(ctx context.Context, s *settings) error { return nil }
